"""Convolutions of a large rate on a small map: a product for each tap and the pixels that it sees.

A tap at rate 12 on a 32 px map reads padding for 12 of its 32 rows. XLA's CPU convolution multiplies those zeros, and
its inner loop is slower with a dilated kernel. Here each tap is one matrix product over the rectangle of outputs whose
pixel lies in the image, added to that part of the result; 1 - `useful_share` of the products are never made.
The products run on the same routine as a 1x1 convolution, near the machine's matrix rate.

CPU milliseconds of one core (512 -> 512: of two), float32, kernel 3x3, forward / input gradient / kernel gradient
(PyTorch 2.13: oneDNN):

| input, channels, rate     | share | XLA's convolution | this file       | PyTorch         |
|---------------------------|-------|-------------------|-----------------|-----------------|
| 2x32x32, 2048 -> 256, 24  | 0.25  | 498 / 257 / 518   | 71 / 56 / 72    | 56 / 58 / 363   |
| 2x32x32, 2048 -> 256, 12  | 0.56  | 361 / 239 / 387   | 175 / 158 / 155 | 126 / 121 / 184 |
| 2x32x32, 512 -> 256, 6    | 0.77  | 52 / 54 / 58      | 39 / 42 / 70    | 36 / 37 / 48    |
| 2x33x33, 320 -> 256, 6    | 0.77  | 34 / 36 / 38      | 29 / 29 / 36    | 25 / 25 / 30    |
| 2x32x32, 512 -> 512, 4    | 0.84  | 114 / 114 / 110   | 111 / 131 / 137 | 86 / 79 / 100   |
| 1x41x41, 512 -> 1024, 12  | 0.65  | 184 / 208 / 223   | 128 / 132 / 140 | 112 / 118 / 257 |
| 1x41x41, 2048 -> 21, 24   | 0.37  | 111 / 16 / 83     | 24 / 28 / 14    | 23 / 9 / 171    |
| 1x41x41, 2048 -> 21, 12   | 0.65  | 33 / 16 / 60      | 50 / 49 / 107   | 57 / 14 / 22    |

Tried on dense kernels at rate 1 and found no faster than XLA's convolution: the same products over shifted slices,
im2col (whole, by kernel rows, by blocks of rows), the kernel gradient as products of shifted slices.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.ops.stock_conv import Pads, Pair
from jaxseg.ops.window import along, cut, out_size


class _Tap(NamedTuple):
    """A kernel tap (row, column) and the rectangles that it joins: first output and input pixel, and their number."""

    at: Pair
    output: Pair
    image: Pair
    extent: Pair


def _taps(size: Pair, out: Pair, kernel_size: Pair, pads: Pads, dilation: Pair) -> list[_Tap]:
    """All taps that see a pixel, the one that sees most first: it begins the sum, without zeros to add to."""
    rows, columns = (
        list(along(n, o, k, lo, d)) for n, o, k, (lo, _), d in zip(size, out, kernel_size, pads, dilation, strict=True)
    )
    taps = [_Tap((i, j), (o, p), (y, x), (h, w)) for i, o, y, h in rows for j, p, x, w in columns]
    return sorted(taps, key=lambda tap: -tap.extent[0] * tap.extent[1])


def _add(total: jax.Array | None, part: jax.Array, start: Pair, size: Pair) -> jax.Array:
    """`part` added to its place in `total`, which XLA does in place: one product is in memory at a time."""
    (y, x), (h, w) = start, part.shape[1:3]
    if total is None:
        edges = ((0, 0, 0), (y, size[0] - y - h, 0), (x, size[1] - x - w, 0), (0, 0, 0))
        return lax.pad(part, jnp.zeros((), part.dtype), edges)
    return lax.dynamic_update_slice(total, cut(total, start, (h, w)) + part, (0, y, x, 0))


def _product(x: jax.Array, kernel: jax.Array, axis: int, precision: Any) -> jax.Array:
    dimensions = (((3,), (axis,)), ((), ()))
    return lax.dot_general(x, kernel, dimensions, precision=precision, preferred_element_type=jnp.float32)


def forward_by_taps(x: jax.Array, kernel: jax.Array, *, pads: Pads, dilation: Pair, precision: Any) -> jax.Array:
    """`stock_conv` at stride 1, summed in float32; `useful_share` is above 0."""
    (h, w), (kh, kw) = x.shape[1:3], kernel.shape[:2]
    out = out_size((h, w), (kh, kw), pads, dilation)
    total = None
    for tap in _taps((h, w), out, (kh, kw), pads, dilation):
        part = _product(cut(x, tap.image, tap.extent), kernel[tap.at], 0, precision)
        total = _add(total, part, tap.output, out)
    assert total is not None  # useful_share > 0
    return total.astype(x.dtype)


def input_gradient_by_taps(
    x: jax.Array, kernel: jax.Array, g: jax.Array, *, pads: Pads, dilation: Pair, precision: Any
) -> jax.Array:
    """The gradient of x `[b, h, w, c]` for the cotangent g `[b, h', w', n]`."""
    (h, w), (kh, kw) = x.shape[1:3], kernel.shape[:2]
    total = None
    for tap in _taps((h, w), (g.shape[1], g.shape[2]), (kh, kw), pads, dilation):
        part = _product(cut(g, tap.output, tap.extent), kernel[tap.at], 1, precision)
        total = _add(total, part, tap.image, (h, w))
    assert total is not None
    return total.astype(x.dtype)


def kernel_gradient_by_taps(
    x: jax.Array, kernel: jax.Array, g: jax.Array, *, pads: Pads, dilation: Pair, precision: Any
) -> jax.Array:
    """The gradient of the kernel `[kh, kw, c, n]` for the cotangent g."""
    (h, w), (kh, kw, c, n) = x.shape[1:3], kernel.shape
    pixels = (((0, 1, 2), (0, 1, 2)), ((), ()))
    dot = functools.partial(
        lax.dot_general, dimension_numbers=pixels, precision=precision, preferred_element_type=jnp.float32
    )
    parts = {}
    for tap in _taps((h, w), (g.shape[1], g.shape[2]), (kh, kw), pads, dilation):
        left, right = cut(x, tap.image, tap.extent), cut(g, tap.output, tap.extent)
        # XLA's CPU writes the left side of a product transposed: the one with fewer channels. Without the barrier it
        # turns the sides round again.
        parts[tap.at] = dot(left, right) if c <= n else lax.optimization_barrier(dot(right, left)).T
    blind = jnp.zeros((c, n), jnp.float32)
    gradient = jnp.stack([parts.get((i, j), blind) for i in range(kh) for j in range(kw)])
    return gradient.reshape(kernel.shape).astype(kernel.dtype)
