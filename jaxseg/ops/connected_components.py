"""Connected components of masks and label maps, under jit, exact for any shape of region, spirals too."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike


def connected_components(labels: ArrayLike, *, connectivity: int = 4, where: ArrayLike | None = None) -> jax.Array:
    """Numbers the regions of neighbouring pixels with equal labels.

    Each pixel takes the smallest pixel number that scans over columns and rows bring from its region, then that pixel's
    own number, until nothing changes; the second step halves long ways, so that even spirals need few rounds.

    Args:
      labels: bool `[*b, h, w]`, where False is background; or integers, whose regions of every label count.
      connectivity: 4 or 8 neighbours.
      where: bool `[*b, h, w]`, the pixels that take part; None: all. Others connect nothing.

    Returns:
      int32 `[*b, h, w]`: 0 in the background and outside `where`, elsewhere 1, 2, ... in the order in which a reader of
      the image's rows meets the regions, as `scipy.ndimage.label`. The largest number is how many there are.

    Raises:
      TypeError: `labels` are neither bool nor integers, or `where` is not bool.
      ValueError: no rows and columns, shapes differ, a connectivity other than 4 and 8, or an image over 2^30 pixels.
    """
    labels = jnp.asarray(labels)
    if labels.dtype != jnp.bool_ and not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be bool or integers, not {labels.dtype}")
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity = {connectivity!r} is not 4 or 8")
    if labels.ndim < 2:
        raise ValueError(f"labels {labels.shape} have no rows and columns")
    where = jnp.ones(labels.shape, bool) if where is None else jnp.asarray(where)
    if where.dtype != jnp.bool_:
        raise TypeError(f"where must be bool, not {where.dtype}")
    if where.shape != labels.shape:
        raise ValueError(f"where {where.shape} and the image {labels.shape} differ in shape")
    h, w = labels.shape[-2:]
    if h * w > 2**30:
        raise ValueError(f"an image of {h} x {w} pixels is too large")
    if labels.size == 0:
        return jnp.zeros(labels.shape, jnp.int32)
    if labels.dtype == jnp.bool_:
        where, labels = where & labels, jnp.zeros(labels.shape, jnp.int32)
    first = _first_pixels(labels.reshape(-1, h, w), where.reshape(-1, h, w), connectivity)
    return _consecutive(first).reshape(where.shape)


def _first_pixels(kinds: jax.Array, valid: jax.Array, connectivity: int) -> jax.Array:
    """The number `y w + x` of each region's first pixel, h w outside `valid`; `[b, h, w]`."""
    b, h, w = kinds.shape
    nobody = h * w
    number = lax.broadcasted_iota(jnp.int32, kinds.shape, 1) * w + lax.broadcasted_iota(jnp.int32, kinds.shape, 2)
    number = jnp.where(valid, number, nobody)
    by_rows = tuple(jnp.moveaxis(a, 1, 0) for a in (kinds, valid))  # [h, b, w]
    by_columns = tuple(jnp.moveaxis(a, 2, 0) for a in (kinds, valid))  # [w, b, h]

    def unsettled(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        return state[1]

    def spread(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        before = state[0]
        found = _sweep(jnp.moveaxis(before, 2, 0), *by_columns, diagonals=False)
        found = _sweep(jnp.transpose(found, (2, 1, 0)), *by_rows, diagonals=connectivity == 8)
        found = jnp.moveaxis(found, 0, 1)
        flat = found.reshape(b, nobody)
        # A region's pixels hold numbers of its own pixels: each may take what that pixel has found.
        found = jnp.take_along_axis(flat, jnp.minimum(flat, nobody - 1), axis=1, mode="promise_in_bounds")
        found = jnp.where(valid, found.reshape(before.shape), nobody)
        return found, jnp.any(found != before)

    return lax.while_loop(unsettled, spread, (number, jnp.bool_(True)))[0]


def _sweep(numbers: jax.Array, kinds: jax.Array, valid: jax.Array, *, diagonals: bool) -> jax.Array:
    """Carries the smallest number of a region along the first axis, forth and back; `[lines, b, n]`."""
    lines, b, n = numbers.shape
    nobody = jnp.full((b, n), jnp.iinfo(jnp.int32).max, jnp.int32)

    def moved(line: jax.Array, by: int, fill: int) -> jax.Array:
        return jnp.roll(line, by, axis=-1).at[:, 0 if by > 0 else -1].set(fill)

    def step(carry: tuple[jax.Array, jax.Array], line: tuple[jax.Array, ...]) -> tuple[tuple, jax.Array]:
        above, above_kinds = carry
        number, kind, inside = line
        best = jnp.where(above_kinds == kind, above, number)
        if diagonals and n > 1:
            for by in (1, -1):
                same = moved(above_kinds, by, 0) == kind
                best = jnp.minimum(best, jnp.where(same, moved(above, by, int(jnp.iinfo(jnp.int32).max)), number))
        number = jnp.where(inside, jnp.minimum(number, best), number)
        return (number, kind), number

    for reverse in (False, True):
        start = (nobody, kinds[0])
        numbers = lax.scan(step, start, (numbers, kinds, valid), reverse=reverse)[1]
    return numbers


def _consecutive(first: jax.Array) -> jax.Array:
    """1, 2, ... for the numbers of first pixels `[b, h, w]`, 0 for h w."""
    b, h, w = first.shape
    flat = first.reshape(b, h * w)
    place = lax.broadcasted_iota(jnp.int32, flat.shape, 1)
    rank = jnp.cumsum(flat == place, axis=1, dtype=jnp.int32)
    number = jnp.take_along_axis(rank, jnp.minimum(flat, h * w - 1), axis=1, mode="promise_in_bounds")
    return jnp.where(flat < h * w, number, 0).reshape(first.shape)
