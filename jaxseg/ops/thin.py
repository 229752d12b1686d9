"""Thin convolutions, of few channels out: the products of all taps beside each other; and their kernel gradient.

Values of many channels in and few out are one product of the image as it is with the kernels of all taps, `kh kw n`
planes of pixels, and the sum of these, each seen from its tap: along a row of pixels the sum goes at the full width of
the registers, which it does not over 12 channels. XLA's CPU and Winograd's way (`ops/winograd.py`) make products of `n`
columns or `kw n`, too few for the registers. Two cores with AVX-512, float32, the best of nine or more, milliseconds:
XLA's convolution or the better of Winograd's way and blocks of rows (*: of another hour), by shifts with the channels
last, and here, in turns. The last three are left to the others:

| input, channels, kernel, rate   | others | channels last | here |
|---------------------------------|--------|---------------|------|
| 3x224x224, 168 -> 12, 3x3, 1    | 67     | 56            | 45   |
| 3x224x224, 84 -> 12, 3x3, 1     | 28     | 28            | 23   |
| 3x224x224, 48 -> 12, 3x3, 1     | 17     | 23            | 16   |
| 3x112x112, 228 -> 12, 3x3, 1    |        | 16            | 14   |
| 3x112x112, 108 -> 12, 3x3, 1    | 10     | 10            | 8.2  |
| 3x28x28, 108 -> 12, 3x3, 1      | 0.9    | 0.5           | 0.5  |
| 3x112x112, 144 -> 16, 3x3, 1    | 14     | 14            | 12   |
| 1x32x32, 2048 -> 21, 15x1, 1    | 30 *   | 9.3           | 7.7  |
| 2x64x64, 1024 -> 21, 7x1, 1     | 37 *   | 19            | 17   |
| 1x41x41, 2048 -> 21, 3x3, 6     | 17 *   | 7.5           | 7.6  |
| 1x41x41, 2048 -> 21, 3x3, 12    | 23 *   | 7.7           | 7.5  |
| 4x64x64, 256 -> 1, 3x3, 1       | 7.9 *  | 2.2           | 2.1  |
| 3x112x112, 96 -> 16, 3x3, 1     | 11     | 14            | 14   |
| 4x64x64, 294 -> 21, 3x3, 1      | 11     | 14            | 13   |
| 2x32x32, 2048 -> 64, 3x3, 1     | 22 *   | 29 *          |      |

The kernel gradient has the pixels, or the cotangents, of all taps beside each other.

XLA's CPU makes it badly where the number of channels out is no multiple of 32. Here the pixels of all taps of a few
rows lie beside each other, in the core's cache, and make one product an image ("rows"); or the cotangents of all taps
do ("shifts"), which are fewer numbers where there are fewer channels out than in. Two cores, kernel 3x3, rate 1, wall
time, the best of nine or more on a machine that others share (PyTorch: another day):

| input, channels        | XLA's convolution | rows | shifts | PyTorch |
|------------------------|-------------------|------|--------|---------|
| 3x224x224, 48 -> 12    | 78                | 40   | 21     | 16      |
| 3x224x224, 168 -> 12   | 220               | 85   | 44     | 42      |
| 3x112x112, 144 -> 12   | 51                | 27   | 11     | 11      |
| 3x56x56, 300 -> 12     |                   | 16   | 6.0    | 6.2     |
| 3x28x28, 400 -> 12     |                   | 6.1  | 2.8    | 1.6     |
| 4x256x256, 16 -> 16    | 27                | 19   | 26     | 6.9     |
| 4x256x256, 32 -> 16    | 52                | 37   | 31     |         |
| 2x64x64, 128 -> 16     | 19                | 4.5  | 2.6    |         |
| 4x256x256, 16 -> 21    | 138               | 19   | 39     | 14      |
| 2x64x64, 256 -> 21     | 22                | 13   | 7.2    |         |
| 2x64x64, 96 -> 48      | 15                | 7.7  | 7.4    |         |
| 3x224x224, 3 -> 48     | 29                | 10   |        |         |
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.ops.apart import apart
from jaxseg.ops.channel_sums import sum_of_images
from jaxseg.ops.stock_conv import Pads, Pair
from jaxseg.ops.window import cut, gradient_pads, in_float32, out_size

# Numbers of the image, or of both sides, that lie beside each other at a time: more leave the caches.
ROWS_BLOCK = 2**19
SHIFTS_BLOCK = 2**19


def forward_by_shifts(x: jax.Array, kernel: jax.Array, *, pads: Pads, dilation: Pair, precision: Any) -> jax.Array:
    """`stock_conv` at stride 1, summed in float32 at least.

    Args:
      x: `[b, h, w, c]`.
      kernel: `[kh, kw, c, n]`.
      pads: (before, after) for rows and for columns.
      dilation: rows, columns.
      precision: as `jax.lax.dot_general`.
    """
    (kh, kw, c, n), (b, h, w, _), (down, right) = kernel.shape, x.shape, dilation
    rows, columns = out_size((h, w), (kh, kw), pads, dilation)
    taps, pixels = kernel.transpose(0, 1, 3, 2).reshape(kh * kw * n, c), x.reshape(b * h * w, c)
    products = lax.dot_general(in_float32(taps), in_float32(pixels), (((1,), (1,)), ((), ())), precision=precision)
    planes = products.reshape(kh, kw, n, b, h, w)

    def seen_by(i: int, j: int) -> jax.Array:
        above, before = pads[0][0] - i * down, pads[1][0] - j * right
        edges = ((0, 0, 0), (0, 0, 0), (above, rows - h - above, 0), (before, columns - w - before, 0))
        return lax.pad(planes[i, j], jnp.zeros((), products.dtype), edges)

    total = functools.reduce(jnp.add, (seen_by(i, j) for i in range(kh) for j in range(kw)))
    # Apart from what puts the channels last again, which would have the sum read one number at a time.
    total = apart(total, kernel[0, 0, 0, 0])
    return jnp.moveaxis(total, 0, 3).astype(x.dtype)


def kernel_gradient_by_rows(
    x: jax.Array, kernel: jax.Array, g: jax.Array, *, pads: Pads, dilation: Pair, precision: Any
) -> jax.Array:
    """For a block of rows at a time, the pixels of all taps beside each other and one product an image.

    The batch axis stays in the sum, so that a batch split over devices is summed once, at the end.
    """
    (kh, kw, c, n), (b, h, w, _), (down, right) = kernel.shape, g.shape, dilation
    most = max(1, ROWS_BLOCK // (w * kh * kw * c))
    rows = max(r for r in range(1, min(most, h) + 1) if h % r == 0)
    padded = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)))
    padded = lax.optimization_barrier(padded)
    dot = functools.partial(lax.dot_general, dimension_numbers=(((1,), (1,)), ((0,), (0,))), precision=precision)

    def body(block: jax.Array, total: jax.Array) -> jax.Array:
        pixels = lax.dynamic_slice_in_dim(padded, block * rows, rows + (kh - 1) * down, 1)
        taps = [cut(pixels, (i * down, j * right), (rows, w)) for i in range(kh) for j in range(kw)]
        columns = jnp.concatenate(taps, axis=-1).astype(jnp.float32).reshape(b, rows * w, kh * kw * c)
        part = lax.dynamic_slice_in_dim(g, block * rows, rows, 1).astype(jnp.float32)
        return total + dot(part.reshape(b, rows * w, n), columns)

    total = lax.fori_loop(0, h // rows, body, jnp.zeros((b, n, kh * kw * c), jnp.float32))
    return sum_of_images(total).T.reshape(kernel.shape).astype(kernel.dtype)


def kernel_gradient_by_shifts(
    x: jax.Array, kernel: jax.Array, g: jax.Array, *, pads: Pads, dilation: Pair, precision: Any
) -> jax.Array:
    """The same with the image as it is and the cotangents of all taps beside each other: kh kw n columns, not kh kw c.

    Pixel p meets the cotangent of output `p + lo - tap * dilation`, zero where there is none. The cotangents are
    planes of pixels: with the channels last the product's left side would be transposed, for which XLA's CPU has a
    routine that asks for memory ten times a product. FC-DenseNet56's step asked 20,000 times then and 4,000 times so.
    In a process that had compiled the program, where glibc searches long for each, it took 3.16 and 2.90 s, as long as
    before (1.00) in one that had read it from the compilation cache.
    """
    (kh, kw, c, n), (b, h, w, _), (down, right) = kernel.shape, x.shape, dilation
    most = max(1, SHIFTS_BLOCK // (w * (2 * kh * kw * n + c)))
    rows = max(r for r in range(1, min(most, h) + 1) if h % r == 0)
    above, beside = gradient_pads((h, w), g.shape[1:3], (kh, kw), pads, dilation)
    planes = apart(jnp.moveaxis(g, 3, 1), kernel[0, 0, 0, 0])
    padded = lax.pad(planes, jnp.zeros((), g.dtype), ((0, 0, 0), (0, 0, 0), (*above, 0), (*beside, 0)))
    dot = functools.partial(lax.dot_general, dimension_numbers=(((2,), (1,)), ((0,), (0,))), precision=precision)

    def body(block: jax.Array, total: jax.Array) -> jax.Array:
        seen = lax.dynamic_slice_in_dim(padded, block * rows, rows + (kh - 1) * down, 2)
        corners = [((kh - 1 - i) * down, (kw - 1 - j) * right) for i in range(kh) for j in range(kw)]
        taps = [seen[:, :, top : top + rows, left : left + w] for top, left in corners]
        columns = jnp.concatenate(taps, axis=1).astype(jnp.float32).reshape(b, kh * kw * n, rows * w)
        pixels = lax.dynamic_slice_in_dim(x, block * rows, rows, 1).astype(jnp.float32)
        return total + dot(columns, pixels.reshape(b, rows * w, c))

    total = lax.fori_loop(0, h // rows, body, jnp.zeros((b, kh * kw * n, c), jnp.float32))
    return sum_of_images(total).reshape(kh, kw, n, c).swapaxes(2, 3).astype(kernel.dtype)
