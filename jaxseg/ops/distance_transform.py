"""The exact Euclidean distance transform, on the device, for whole batches of images of any size.

Two passes: the distance to the nearest target within each row, then for each column the smallest of
`(y - u)^2 + row_distance(u)^2` over its pixels u (Saito & Toriwaki 1994). For the second, a CPU builds the lower
envelope of the parabolas (Felzenszwalb & Huttenlocher 2012, Meijster et al. 2000), all columns of all images in step,
in time that grows with the number of pixels. Other devices look at u = y - k and y + k for k = 1, 2, ... and stop as
soon as k^2 exceeds every value: hundreds of small steps in a row are what they are slow at, whole-image steps are not.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

# What int32 results hold where an image has no target; also the bound on squared distances, with room for one sum.
NO_TARGET = 2**30
# Offsets that one step of the search along columns looks at: each reads the image once, whatever their number.
OFFSETS_A_STEP = 8

Columns = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # of each column: row, height, first row, row below


def squared_distance(targets: ArrayLike, *, spacing: Sequence[float] | None = None) -> jax.Array:
    """The squared Euclidean distance of every pixel to the nearest target.

    `min over targets (y', x') of (sy (y - y'))^2 + (sx (x - x'))^2`, exact: nothing is searched in a window or rounded.

    Args:
      targets: bool `[*b, h, w]`, with h^2 + w^2 up to 2^30: 10,000 x 10,000 is far within.
      spacing: `(sy, sx)`, the distance between rows and between columns; None: both are 1.

    Returns:
      `[*b, h, w]`: int32, exact, and `NO_TARGET` (2^30) everywhere in an image without a target; with `spacing`
      float32, within a few units in the last place, and inf in an image without a target. Targets at one pixel of a
      3 x 3 image's corner give ((0, 1, 4), (1, 2, 5), (4, 5, 8)).

    Raises:
      TypeError: `targets` is not bool.
      ValueError: no rows and columns, too large an image, or a spacing that is not two positive numbers.

    Reference: Meijster, Roerdink & Hesselink 2000, "A general algorithm for computing distance transforms in linear
    time"; Felzenszwalb & Huttenlocher 2012, "Distance transforms of sampled functions".
    """
    targets = jnp.asarray(targets)
    if targets.dtype != jnp.bool_:
        raise TypeError(f"targets must be bool, not {targets.dtype}")
    if targets.ndim < 2:
        raise ValueError(f"targets {targets.shape} have no rows and columns")
    h, w = targets.shape[-2:]
    if h * h + w * w > NO_TARGET:
        raise ValueError(f"an image of {h} x {w} pixels is too large: h^2 + w^2 must not exceed 2^30")
    step, across = _checked_spacing(spacing)
    if targets.size == 0:
        return jnp.zeros(targets.shape, jnp.int32 if spacing is None else jnp.float32)
    result = lax.platform_dependent(
        targets.reshape(-1, h, w),
        cpu=lambda t: _by_envelope(t, step, across),
        default=lambda t: _by_offsets(t, step, across),
    )
    return result.reshape(targets.shape)


def distance_transform(foreground: ArrayLike, *, spacing: Sequence[float] | None = None) -> jax.Array:
    """The distance of each foreground pixel to the nearest background pixel, as SciPy's `distance_transform_edt`.

    Args:
      foreground: bool `[*b, h, w]`.
      spacing: `(sy, sx)`; None: 1.

    Returns:
      float32 `[*b, h, w]`, 0 at background; inf everywhere in an image without background (SciPy's result is
      arbitrary there). What lies beyond the image is no background. A row (1, 1, 1, 0) gives (3, 2, 1, 0).

    Raises:
      As `squared_distance`.
    """
    foreground = jnp.asarray(foreground)
    if foreground.dtype != jnp.bool_:
        raise TypeError(f"foreground must be bool, not {foreground.dtype}")
    return root(squared_distance(~foreground, spacing=spacing))


def root(squared: jax.Array) -> jax.Array:
    """The distance, float32, of a squared distance; inf where there was no target."""
    if jnp.issubdtype(squared.dtype, jnp.integer):
        return jnp.where(squared >= NO_TARGET, jnp.inf, jnp.sqrt(squared.astype(jnp.float32)))
    return jnp.sqrt(squared)


def _checked_spacing(spacing: Sequence[float] | None) -> tuple[int | float, int | float]:
    if spacing is None:
        return 1, 1
    if len(spacing) != 2 or not all(0 < float(s) < math.inf for s in spacing):
        raise ValueError(f"spacing = {tuple(spacing)} is not two positive numbers (between rows, between columns)")
    return float(spacing[0]), float(spacing[1])


def _none(across: int | float) -> int | float:
    return NO_TARGET if isinstance(across, int) else math.inf


def _squared_within_rows(along: jax.Array, found: jax.Array, across: int | float) -> jax.Array:
    """Squares of distances in pixels, `_none` where a row has no target."""
    if isinstance(across, int):
        return jnp.where(found, along * along, NO_TARGET)
    scaled = along.astype(jnp.float32) * across
    return jnp.where(found, scaled * scaled, jnp.inf)


def _by_envelope(targets: jax.Array, step: int | float, across: int | float) -> jax.Array:
    """`[b, h, w]`, by scans that run over one axis and hold all others as their lanes."""
    b, h, w = targets.shape

    def right(since: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        since = jnp.where(target, 0, since + 1)
        return since, since

    def left(since: jax.Array, found: jax.Array) -> tuple[jax.Array, jax.Array]:
        since = jnp.minimum(found, since + 1)
        return since, since

    far = jnp.full((b, h), 2 * w, jnp.int32)
    _, along = lax.scan(right, far, jnp.moveaxis(targets, 2, 0))
    _, along = lax.scan(left, far, along, reverse=True)
    squared = _squared_within_rows(along, along < w, across)  # [w, b, h]
    lanes = jnp.transpose(squared, (2, 1, 0)).reshape(h, b * w)
    return jnp.moveaxis(_lower_envelope(lanes, step).reshape(h, b, w), 0, 1)


def _lower_envelope(heights: jax.Array, step: int | float) -> jax.Array:
    """`min over u of (step (y - u))^2 + heights[u]` for each column, `[h, n]`; heights are `_none` where there is none.

    The parabolas on the envelope of the rows so far are a stack: each holds the row from which it is the lowest and the
    row of the one below it. Pushes write one row of `stack` for all columns; only pops look rows up by column.
    """
    h, n = heights.shape
    none = _none(step)
    column = jnp.arange(n, dtype=jnp.int32)
    flat = heights.reshape(-1)

    def cost(offset: jax.Array, height: jax.Array) -> jax.Array:
        scaled = offset if isinstance(step, int) else offset.astype(jnp.float32) * step
        return scaled * scaled + height

    def under(stack: jax.Array, top: Columns, popped: jax.Array) -> Columns:
        """The stack's top after `popped` columns lost theirs."""
        at, height, start, below = top
        index = jnp.where(popped, jnp.maximum(below, 0) * n + column, 0)
        entry = stack.reshape(-1).at[index].get(mode="promise_in_bounds")
        below_height = flat.at[index].get(mode="promise_in_bounds")
        return (
            jnp.where(popped, below, at),
            jnp.where(popped, below_height, height),
            jnp.where(popped, entry >> 16, start),
            jnp.where(popped, (entry & 0xFFFF) - 1, below),
        )

    def add(
        carry: tuple[jax.Array, Columns], row: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, Columns], None]:
        stack, top = carry
        y, height = row

        def hidden(top: Columns) -> jax.Array:
            # Where the new parabola is lower at the top's first row, it is lower at all of the top's rows.
            return (top[0] >= 0) & (cost(top[2] - top[0], top[1]) > cost(top[2] - y, height))

        top = lax.while_loop(lambda t: jnp.any(hidden(t)), lambda t: under(stack, t, hidden(t)), top)
        at, top_height, start, below = top
        first = jnp.where(at >= 0, _crossing(y, height, at, top_height, step) + 1, 0)
        pushed = (height < none) & (first < h)
        entry = (jnp.where(pushed, first, 0) << 16) | (at + 1)
        stack = lax.dynamic_update_slice(stack, entry[None], (y, jnp.int32(0)))
        top = (
            jnp.where(pushed, y, at),
            jnp.where(pushed, height, top_height),
            jnp.where(pushed, first, start),
            jnp.where(pushed, at, below),
        )
        return (stack, top), None

    def read(top: Columns, y: jax.Array) -> tuple[Columns, jax.Array]:
        # First rows differ from parabola to parabola, so that one row up ends at most one of them.
        top = under(stack, top, (top[2] > y) & (top[0] >= 0))
        return top, jnp.where(top[0] >= 0, cost(y - top[0], top[1]), none)

    zero = jnp.zeros(n, jnp.int32)
    rows = jnp.arange(h, dtype=jnp.int32)
    empty = (zero - 1, jnp.zeros(n, heights.dtype), zero, zero - 1)
    (stack, top), _ = lax.scan(add, (jnp.zeros((h, n), jnp.int32), empty), (rows, heights))
    return lax.scan(read, top, rows, reverse=True)[1]


def _crossing(y: jax.Array, height: jax.Array, at: jax.Array, top_height: jax.Array, step: int | float) -> jax.Array:
    """The last row at which the parabola of row `at` is not above that of row `y > at`; past the image where hidden."""
    apart = jnp.maximum(y - at, 1)
    if isinstance(step, int):
        # Not negative: the top is not above the new one at its own first row, which is 0 or more.
        rise = jnp.where(at >= 0, y * y - at * at + height - top_height, 0)
        return lax.div(rise, 2 * apart)
    middle = (y + at).astype(jnp.float32) * 0.5
    shift = jnp.where(height < jnp.inf, height, 0.0) - top_height
    shift = shift / (apart.astype(jnp.float32) * (2.0 * step * step))
    return jnp.clip(jnp.floor(middle + shift), -1, 2**15 - 2).astype(jnp.int32)


def _by_offsets(targets: jax.Array, step: int | float, across: int | float) -> jax.Array:
    """`[b, h, w]`, by whole-image steps alone."""
    h, w = targets.shape[-2:]
    place = lax.broadcasted_iota(jnp.int32, targets.shape, 2)
    before = lax.cummax(jnp.where(targets, place, -w), axis=2)
    after = lax.cummin(jnp.where(targets, place, 2 * w), axis=2, reverse=True)
    along = jnp.minimum(place - before, after - place)
    squared = _squared_within_rows(along, along < w, across)
    none = _none(step)
    # An image without targets never gets below `none` and must not keep the others waiting.
    some = jnp.any(targets, axis=(1, 2), keepdims=True)
    margin = h + OFFSETS_A_STEP
    padded = jnp.pad(squared, [(0, 0), (margin, margin), (0, 0)], constant_values=none)

    def cost(offset: jax.Array) -> jax.Array:
        scaled = offset if isinstance(step, int) else offset.astype(jnp.float32) * step
        return scaled * scaled

    def unfinished(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        nearest, offset = state
        return (offset < h) & (jnp.max(jnp.where(some, nearest, 0)) > cost(offset))

    def look(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        nearest, offset = state
        for k in range(OFFSETS_A_STEP):
            above = lax.dynamic_slice_in_dim(padded, margin - offset - k, h, axis=1)
            below = lax.dynamic_slice_in_dim(padded, margin + offset + k, h, axis=1)
            nearest = jnp.minimum(nearest, jnp.minimum(above, below) + cost(offset + k))
        return nearest, offset + OFFSETS_A_STEP

    return lax.while_loop(unfinished, look, (squared, jnp.int32(1)))[0]
