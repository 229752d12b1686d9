"""Hausdorff loss by convolutions with discs (Karimi & Salcudean 2019, arXiv 1904.10030)."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxseg.core.errors import JaxsegError
from jaxseg.losses import options
from jaxseg.losses.class_maps import Classes, class_maps, each_class, map_loss
from jaxseg.losses.reduction import Loss

RADII = (3, 6, 9, 12, 15, 18)
TILE_ROWS = 64  # computed at a time: the sums along rows of all lengths of a whole batch would not fit in memory


def build(
    *,
    alpha: float = 2.0,
    radii: Sequence[int] = RADII,
    classes: Classes = "all",
    activation: str = "softmax",
    multi_hot: bool = False,
) -> Loss:
    """The loss `hausdorff_convolution` of a config: the mean over valid pixels and classes.

    Args:
      alpha: how strongly large radii count, at least 0.
      radii: of the discs, in pixels, each at least 1, none twice.
      classes: `all`, or class ids, for example all but the background.
      activation: `softmax`, or `sigmoid` for classes that may overlap.
      multi_hot: labels are 0 and 1 `[*b, h, w, c]`, with `sigmoid`; otherwise class ids `[*b, h, w]`.

    Raises:
      JaxsegError: an option is out of its range.
    """
    name = "hausdorff_convolution"
    if isinstance(radii, str) or not len(radii):
        raise JaxsegError(f"config.loss.{name}.radii = {radii!r}; it takes at least one radius in pixels.")
    radii = tuple(options.whole_number(f"{name}.radii", r, least=1) for r in radii)
    if len(set(radii)) < len(radii):
        raise JaxsegError(f"config.loss.{name}.radii = {radii}: each radius once.")
    return map_loss(
        name,
        hausdorff_convolution,
        alpha=options.number(f"{name}.alpha", alpha),
        radii=radii,
        classes=classes,
        activation=activation,
        multi_hot=multi_hot,
    )


def hausdorff_convolution(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    alpha: float = 2.0,
    radii: Sequence[int] = RADII,
    classes: Classes = "all",
    activation: str = "softmax",
) -> jax.Array:
    """Errors at pixels around which a disc lies on one side of an outline, weighted by its radius; per pixel and class.

    `sum over r of r^alpha (p - y)^2 ((f(B_r (1 - y)) + f(B_r p)) p + (f(B_r y) + f(B_r (1 - p))) y)`, where `B_r` is
    the mean over a disc of radius r and `f(x)` is x where it is at least 0.5, else 0. A pixel that is predicted but
    not true has a distance of at least r to the truth where the whole disc lies outside of it.

    Args:
      logits: float `[*b, h, w, c]`.
      labels: integers `[*b, h, w]`; class ids inside `where`, anything outside.
      where: bool `[*b, h, w]`, the pixels that count; None: all. Others, and what is beyond the image, are neither in a
        mask nor in its complement, so that they count as 0 in both means.
      alpha: the power, at least 0.
      radii: of the discs, in pixels: all offsets with dy^2 + dx^2 <= r^2.
      classes: `all`, or k class ids.
      activation: `softmax` or `sigmoid`; with `sigmoid`, labels and `where` may be `[*b, h, w, c]`.

    Returns:
      float32 `[*b, h, w, k]`, 0 outside `where`. One pixel alone with y = 0 and p = 1 and radius 1: each mean is 0.2
      and f leaves nothing, so that the value is 0.

    Raises:
      TypeError, ValueError: see `checked_inputs`; an id that the logits do not have.

    Reference: arXiv 1904.10030, equation 14. No public code of it was found, by the authors or others, so that these
    values are confirmed by none. Reconstructed, and not checked against the paper's text: that f keeps what is at least
    0.5 as it is (the erosions of the same paper subtract 0.5), and that the areas predicted alone and true alone are
    (p - y)^2 times p and y. Ours: void and what is beyond the image count as 0 in every mean; the mean is over valid
    pixels.
    """
    p, y, where = class_maps(logits, labels, where, classes, activation)
    weights = tuple(float(radius) ** alpha for radius in radii)

    def one(p: jax.Array, y: jax.Array, where: jax.Array) -> jax.Array:
        return _class_values(p, y, where, tuple(radii), weights)

    return each_class(one, where, p, y, again=False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _class_values(
    p: jax.Array, y: jax.Array, where: jax.Array, radii: tuple[int, ...], weights: tuple[float, ...]
) -> jax.Array:
    """The loss of one class, `[*b, h, w]`; y is a constant.

    Its gradient is written down: it needs of the forward pass the slope at fixed means and on which side of 0.5 the
    means are, where differentiation of the loops would keep all of their steps.
    """
    return _forward(p, y, where, radii, weights)[0]


def _forward(
    p: jax.Array, y: jax.Array, where: jax.Array, radii: tuple[int, ...], weights: tuple[float, ...]
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    reach = max(radii)
    rows = min(TILE_ROWS, p.shape[-2]) + 2 * reach
    maps = _padded(jnp.stack([p, y, where.astype(p.dtype)]), reach)

    def tile(top: jax.Array) -> tuple[jax.Array, ...]:
        return _weighted_means(_rows(maps, top, rows), radii, weights)

    by_predicted, by_true, signs = _tiles(tile, p.shape[-2])
    error = (p - y) ** 2
    total = by_predicted * p + by_true * y
    slope = jnp.where(where, 2.0 * (p - y) * total + error * by_predicted, 0.0)
    return jnp.where(where, error * total, 0.0), (p, y, where, slope, signs)


def _backward(
    radii: tuple[int, ...], weights: tuple[float, ...], kept: tuple[jax.Array, ...], upstream: jax.Array
) -> tuple[jax.Array, None, None]:
    p, y, where, slope, signs = kept
    reach = max(radii)
    rows = min(TILE_ROWS, p.shape[-2]) + 2 * reach
    error = jnp.where(where, upstream * (p - y) ** 2, 0.0)
    parts = _padded(jnp.stack([error * p, error * y]), reach)
    signs = _padded(signs, reach)

    def tile(top: jax.Array) -> jax.Array:
        predicted, true = _rows(parts, top, rows)
        words = _rows(signs, top, rows)

        def part(i: int) -> jax.Array:
            inside, outside = (words[i // 16] >> (2 * (i % 16) + bit) & 1 for bit in (0, 1))
            found = jnp.where(inside == 1, predicted, 0.0) - jnp.where(outside == 1, true, 0.0)
            return weights[i] / _pixels(radii[i]) * found

        return _sum_of_disc_sums(jnp.stack([part(i) for i in range(len(radii))]), radii)

    return upstream * slope + _tiles(tile, p.shape[-2]), None, None


_class_values.defvjp(_forward, _backward)


def _weighted_means(
    maps: jax.Array, radii: tuple[int, ...], weights: tuple[float, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What multiplies p and y in the loss, and the sides of 0.5, from p, y and the mask `[3, *b, n + 2 reach, ...]`.

    Returns:
      `[*b, n, w]` twice, and uint32 `[words, *b, n, w]` with two bits a radius: B p is at least 0.5, and B (1 - p).
    """
    reach = max(radii)
    runs = _centred_sums(maps, reach)
    n, w = maps.shape[-2] - 2 * reach, maps.shape[-1] - 2 * reach

    def means(radius: int, runs: jax.Array) -> jax.Array:
        rows = [
            lax.slice_in_dim(runs[half], reach + dy, reach + dy + n, axis=maps.ndim - 2)
            for dy, half in _rows_of_disc(radius)
        ]
        return functools.reduce(jnp.add, rows) * (1.0 / _pixels(radius))

    def step(carry: tuple[jax.Array, jax.Array, jax.Array], radius: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        by_predicted, by_true, signs = carry
        i, weight = radius
        # Each radius in a loop of its own: XLA would merge the sums of all into one, which no cache holds.
        inside_p, inside_y, valid = lax.switch(i, [functools.partial(means, radius) for radius in radii], runs)
        outside_p = valid - inside_p
        by_predicted += weight * (_soft_threshold(valid - inside_y) + _soft_threshold(inside_p))
        by_true += weight * (_soft_threshold(inside_y) + _soft_threshold(outside_p))
        bit = jnp.uint32(1) << (2 * (i % 16)).astype(jnp.uint32)
        sides = jnp.where(inside_p < 0.5, jnp.uint32(0), bit) + jnp.where(outside_p < 0.5, jnp.uint32(0), 2 * bit)
        word = lax.dynamic_index_in_dim(signs, i // 16, keepdims=False) + sides
        return (by_predicted, by_true, lax.dynamic_update_index_in_dim(signs, word, i // 16, 0)), None

    zeros = jnp.zeros((*maps.shape[1:-2], n, w), maps.dtype)
    signs = jnp.zeros((-(-len(radii) // 16), *zeros.shape), jnp.uint32)
    each = (jnp.arange(len(radii), dtype=jnp.int32), jnp.asarray(weights, maps.dtype))
    return lax.scan(step, (zeros, zeros, signs), each)[0]


def _soft_threshold(x: jax.Array) -> jax.Array:
    return jnp.where(x < 0.5, 0.0, x)  # keeps NaN, which `x >= 0.5` would drop


def _rows_of_disc(radius: int) -> list[tuple[int, int]]:
    """Offset and half width of each row of a disc."""
    return [(dy, math.isqrt(radius * radius - dy * dy)) for dy in range(-radius, radius + 1)]


def _pixels(radius: int) -> int:
    return sum(2 * half + 1 for _, half in _rows_of_disc(radius))


def _centred_sums(maps: jax.Array, reach: int) -> jax.Array:
    """Sums over 2 k + 1 pixels of a row, for k = 0 to reach: `[reach + 1, ..., n, w]` from `[..., n, w + 2 reach]`.

    Rows of a disc are such sums, and the longer ones extend the shorter ones: a disc of radius r costs 2 r + 1
    additions a pixel in place of pi r^2.
    """
    w, axis = maps.shape[-1] - 2 * reach, maps.ndim - 1

    def step(total: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        left, right = (lax.dynamic_slice_in_dim(maps, start, w, axis) for start in (reach - k, reach + k))
        total = total + (left + jnp.where(k == 0, 0.0, right))
        return total, total

    # All lengths come out of one loop: XLA joins arrays, as any sum that it fuses, a pixel at a time.
    start = jnp.zeros((*maps.shape[:-1], w), maps.dtype)
    return lax.scan(step, start, jnp.arange(reach + 1, dtype=jnp.int32))[1]


def _sum_of_disc_sums(parts: jax.Array, radii: tuple[int, ...]) -> jax.Array:
    """The sum over radii of each one's part, summed over the disc: `[*b, n, w]` from `[radii, *b, n + 2 reach, ...]`.

    The steps of `_centred_sums` backwards: first what all rows of half width k or more add up to, then its shifts by k.
    """
    reach = max(radii)
    n, w, axis = parts.shape[-2] - 2 * reach, parts.shape[-1] - 2 * reach, parts.ndim - 2

    def rows(k: int, total: jax.Array, parts: jax.Array) -> jax.Array:
        for i, radius in enumerate(radii):
            for dy, half in _rows_of_disc(radius):
                if half == k:
                    total = total + lax.slice_in_dim(parts[i], reach + dy, reach + dy + n, axis=axis - 1)
        return total

    def step(carry: tuple[jax.Array, jax.Array], k: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        total, result = carry
        total = lax.switch(k, [functools.partial(rows, k) for k in range(reach + 1)], total, parts)
        left, right = (lax.dynamic_slice_in_dim(total, start, w, axis) for start in (reach - k, reach + k))
        return (total, result + jnp.where(k == 0, left, left + right)), None

    total, result = (jnp.zeros((*parts.shape[1:-2], n, width), parts.dtype) for width in (parts.shape[-1], w))
    return lax.scan(step, (total, result), jnp.arange(reach, -1, -1, dtype=jnp.int32))[0][1]


def _padded(maps: jax.Array, reach: int) -> jax.Array:
    """Zeros around the last two axes, below up to a whole number of tiles."""
    below = -maps.shape[-2] % min(TILE_ROWS, maps.shape[-2])
    return jnp.pad(maps, [(0, 0)] * (maps.ndim - 2) + [(reach, reach + below), (reach, reach)])


def _rows(maps: jax.Array, top: jax.Array, n: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(maps, top, n, axis=maps.ndim - 2)


def _tiles(function: Callable[[jax.Array], Any], h: int) -> Any:
    """`function(top)` of each tile of rows, `[..., n, w]`, joined to `[..., h, w]`."""
    n = min(TILE_ROWS, h)
    found = lax.map(function, jnp.arange(0, h, n, dtype=jnp.int32))

    def joined(tiles: jax.Array) -> jax.Array:
        tiles = jnp.moveaxis(tiles, 0, -3)
        return tiles.reshape(*tiles.shape[:-3], -1, tiles.shape[-1])[..., :h, :]

    return jax.tree.map(joined, found)
