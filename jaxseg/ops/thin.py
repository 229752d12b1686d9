"""Thin convolutions, of few channels out: the products of all taps beside each other; and their kernel gradient.

Values of many channels in and few out are one product of the image as it is with the kernels of all taps, `kh kw n`
columns, and the sum of its columns, each seen from its tap. XLA's CPU and Winograd's way (`ops/winograd.py`) make
products of `n` columns or `kw n`, too few for the registers. Two cores with AVX-512, float32, in turns, medians of
nine, milliseconds; the last two are left to Winograd's way:

| input, channels, kernel, rate   | XLA's convolution | before       | shifts |
|---------------------------------|-------------------|--------------|--------|
| 3x28x28, 200 -> 12, 3x3, 1      | 1.7               | 1.7          | 1.1    |
| 1x32x32, 2048 -> 21, 15x1, 1    | 30                | 30           | 11     |
| 1x32x32, 2048 -> 21, 1x15, 1    | 26                | 20           | 10     |
| 2x64x64, 1024 -> 21, 7x1, 1     | 37                | 39           | 18     |
| 1x41x41, 2048 -> 21, 3x3, 6     | 26                | 17           | 13     |
| 1x41x41, 2048 -> 21, 3x3, 12    | 24                | 23           | 8.4    |
| 3x112x112, 208 -> 16, 3x3, 1    | 17                | 20           | 17     |
| 3x28x28, 800 -> 16, 3x3, 1      | 6.5               | 3.9          | 3.5    |
| 4x64x64, 256 -> 1, 3x3, 1       | 8.5               | 7.9          | 2.4    |
| 1x256x256, 64 -> 1, 3x3, 1      | 4.3               | 4.5          | 1.8    |
| 2x64x64, 256 -> 21, 3x3, 1      | 11                | 4.7          | 6.5    |
| 2x32x32, 2048 -> 64, 3x3, 1     | 49                | 22           | 29     |

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

from jaxseg.ops.stock_conv import Pads, Pair
from jaxseg.ops.window import cut, gradient_pads, in_float32, out_size

# Numbers of the image, or of both sides, that lie beside each other at a time: more leave the caches.
ROWS_BLOCK = 2**19
SHIFTS_BLOCK = 2**19
# Zeros are put around the image, and not around the products, where it has fewer channels for a column of products and
# its area grows less: what made the image then writes them with it, and the sum asks for no borders.
PADDED_IMAGE, PADDED_AREA = 1.75, 1.1


def forward_by_shifts(x: jax.Array, kernel: jax.Array, *, pads: Pads, dilation: Pair, precision: Any) -> jax.Array:
    """`stock_conv` at stride 1, summed in float32 at least.

    Args:
      x: `[b, h, w, c]`.
      kernel: `[kh, kw, c, n]`.
      pads: (before, after) for rows and for columns.
      dilation: rows, columns.
      precision: as `jax.lax.dot_general`.
    """
    (kh, kw, c, n), (h, w), (down, right) = kernel.shape, x.shape[1:3], dilation
    rows, columns = out_size((h, w), (kh, kw), pads, dilation)
    edges = ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0))
    area = (h + sum(pads[0])) * (w + sum(pads[1]))
    image_is_padded = c < PADDED_IMAGE * kh * kw * n and area < PADDED_AREA * h * w
    image = lax.pad(x, jnp.zeros((), x.dtype), edges) if image_is_padded else x
    taps = kernel.transpose(2, 0, 1, 3).reshape(c, kh * kw * n)
    products = lax.dot_general(in_float32(image), in_float32(taps), (((3,), (0,)), ((), ())), precision=precision)
    if not image_is_padded:
        products = lax.pad(products, jnp.zeros((), products.dtype), edges)
    seen_by = (
        (i * kw + j, cut(products, (i * down, j * right), (rows, columns))) for i in range(kh) for j in range(kw)
    )
    shifted = (of_taps[..., tap * n : (tap + 1) * n] for tap, of_taps in seen_by)
    return functools.reduce(jnp.add, shifted).astype(x.dtype)


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
    return jnp.sum(total, axis=0).T.reshape(kernel.shape).astype(kernel.dtype)


def kernel_gradient_by_shifts(
    x: jax.Array, kernel: jax.Array, g: jax.Array, *, pads: Pads, dilation: Pair, precision: Any
) -> jax.Array:
    """The same with the image as it is and the cotangents of all taps beside each other: kh kw n columns, not kh kw c.

    Pixel p meets the cotangent of output `p + lo - tap * dilation`, zero where there is none.
    """
    (kh, kw, c, n), (b, h, w, _), (down, right) = kernel.shape, x.shape, dilation
    most = max(1, SHIFTS_BLOCK // (w * (2 * kh * kw * n + c)))
    rows = max(r for r in range(1, min(most, h) + 1) if h % r == 0)
    above, beside = gradient_pads((h, w), g.shape[1:3], (kh, kw), pads, dilation)
    padded = lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), (*above, 0), (*beside, 0), (0, 0, 0)))
    dot = functools.partial(lax.dot_general, dimension_numbers=(((1,), (1,)), ((0,), (0,))), precision=precision)

    def body(block: jax.Array, total: jax.Array) -> jax.Array:
        seen = lax.dynamic_slice_in_dim(padded, block * rows, rows + (kh - 1) * down, 1)
        taps = [cut(seen, ((kh - 1 - i) * down, (kw - 1 - j) * right), (rows, w)) for i in range(kh) for j in range(kw)]
        columns = jnp.concatenate(taps, axis=-1).astype(jnp.float32).reshape(b, rows * w, kh * kw * n)
        pixels = lax.dynamic_slice_in_dim(x, block * rows, rows, 1).astype(jnp.float32)
        return total + dot(columns, pixels.reshape(b, rows * w, c))

    total = lax.fori_loop(0, h // rows, body, jnp.zeros((b, kh * kw * n, c), jnp.float32))
    return jnp.sum(total, axis=0).reshape(kh, kw, n, c).swapaxes(2, 3).astype(kernel.dtype)
