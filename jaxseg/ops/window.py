"""Which pixels the taps of a stride-1 convolution see: sizes, paddings and shares, by shapes alone; cuts."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.ops.stock_conv import Pads, Pair


def out_size(size: Pair, kernel_size: Pair, pads: Pads, dilation: Pair) -> Pair:
    """Rows and columns of the output at stride 1."""
    rows, columns = (n + sum(p) - (k - 1) * d for n, k, p, d in zip(size, kernel_size, pads, dilation, strict=True))
    return rows, columns


def gradient_pads(
    size: Sequence[int], out: Sequence[int], kernel_size: Sequence[int], pads: Pads, dilation: Pair
) -> Pads:
    """Padding of the cotangent for the convolution with the turned kernel that gives the image's gradient.

    `out`: rows and columns of the cotangent, with the zeros between its numbers where the convolution has a stride.
    """
    axes = zip(size, out, kernel_size, pads, dilation, strict=True)
    rows, columns = (((k - 1) * d - lo, n + lo - o) for n, o, k, (lo, _), d in axes)
    return rows, columns


def along(n: int, out: int, k: int, lo: int, d: int) -> Iterator[tuple[int, int, int, int]]:
    """Along one axis, for each tap that sees a pixel: tap, first output, its pixel, number of outputs."""
    for i in range(k):
        first, stop = max(0, lo - i * d), min(out, n + lo - i * d)
        if first < stop:
            yield i, first, first + i * d - lo, stop - first


def useful_share(size: Pair, kernel_size: Pair, pads: Pads, dilation: Pair) -> float:
    """Share of the products of a stride-1 convolution that have a pixel in them and not padding, 0 .. 1.

    Example: 3 taps at rate 12 on 32 px see 20, 32 and 20 pixels of 32: 0.75 along each axis, 0.5625 of a square.
    """
    share = 1.0
    for n, k, (lo, hi), d in zip(size, kernel_size, pads, dilation, strict=True):
        out = max(n + lo + hi - (k - 1) * d, 1)
        share *= sum(length for _, _, _, length in along(n, out, k, lo, d)) / (k * out)
    return share


def cut(x: jax.Array, start: Pair, extent: Pair) -> jax.Array:
    """The rectangle of `[b, h, w, c]` from a pixel on."""
    (y, left), (h, w) = start, extent
    return lax.slice(x, (0, y, left, 0), (x.shape[0], y + h, left + w, x.shape[3]))


def in_float32(x: jax.Array) -> jax.Array:
    """x in the type that its products are summed in: float32, float64 if it has that."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)
