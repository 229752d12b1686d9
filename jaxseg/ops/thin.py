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

XLA's CPU makes it badly where the number of channels out is no multiple of 32, or of few channels in. Here planes of
the pixels of all taps of a few rows lie beside each other, in the core's cache, and make one product an image ("rows");
or those of the cotangents of all taps do ("shifts"), which are fewer numbers where there are fewer channels out than
in. One core with AVX-512, kernel 3x3, rate 1, the best of five or more in turns, milliseconds; in brackets as pixels
with their channels, the product's left side transposed:

| input, channels        | XLA's convolution | rows      | shifts    | PyTorch |
|------------------------|-------------------|-----------|-----------|---------|
| 3x224x224, 48 -> 12    | 80                | 50 (39)   | 23 (26)   | 21      |
| 3x224x224, 168 -> 12   | 409               | 198 (114) | 65 (66)   | 70      |
| 3x112x112, 144 -> 12   | 79                | 44        | 14        | 19      |
| 3x56x56, 300 -> 12     | 59                | 33 (14)   | 7.6 (7.4) | 11      |
| 4x256x256, 16 -> 16    | 36                | 26 (27)   | 26 (40)   | 13      |
| 4x256x256, 32 -> 16    | 71                | 53 (53)   | 38 (45)   | 25      |
| 4x256x256, 16 -> 21    | 133               | 34 (32)   | 34 (55)   | 25      |
| 2x64x64, 256 -> 21     | 17                | 28 (13)   | 8.7 (9.2) | 12      |
| 2x64x64, 96 -> 48      | 10                | 11 (8.8)  | 8.7 (9.2) | 7.6     |
| 2x64x64, 64 -> 48      | 6.7               | 7.1 (6.7) | 6.1 (7.4) | 5.3     |
| 3x224x224, 3 -> 48     | 27                | 7.5 (14)  | 34 (75)   | 6.3     |
| 4x256x256, 3 -> 32     | 25                | 9.2 (27)  | 39 (88)   | 5.9     |
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.ops.apart import apart
from jaxseg.ops.channel_sums import sum_of_images
from jaxseg.ops.stock_conv import Pads, Pair
from jaxseg.ops.window import gradient_pads, in_float32, out_size

# Numbers of an image, of the planes beside each other and of the pixels, at a time: more leave the caches.
BLOCK = 2**18


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
    """For a block of rows at a time, the pixels of all taps beside each other and one product an image."""
    (kh, kw), (down, right) = kernel.shape[:2], dilation
    planes = apart(jnp.moveaxis(x, 3, 1), kernel[0, 0, 0, 0])
    padded = lax.pad(planes, jnp.zeros((), x.dtype), ((0, 0, 0), (0, 0, 0), (*pads[0], 0), (*pads[1], 0)))
    corners = [(i * down, j * right) for i in range(kh) for j in range(kw)]
    return _summed(padded, corners, g, precision).reshape(kernel.shape).astype(kernel.dtype)


def kernel_gradient_by_shifts(
    x: jax.Array, kernel: jax.Array, g: jax.Array, *, pads: Pads, dilation: Pair, precision: Any
) -> jax.Array:
    """The same with the image as it is and the cotangents of all taps beside each other: kh kw n planes, not kh kw c.

    Pixel p meets the cotangent of output `p + lo - tap * dilation`, zero where there is none.
    """
    (kh, kw, c, n), (down, right) = kernel.shape, dilation
    above, beside = gradient_pads(x.shape[1:3], g.shape[1:3], (kh, kw), pads, dilation)
    planes = apart(jnp.moveaxis(g, 3, 1), kernel[0, 0, 0, 0])
    padded = lax.pad(planes, jnp.zeros((), g.dtype), ((0, 0, 0), (0, 0, 0), (*above, 0), (*beside, 0)))
    corners = [((kh - 1 - i) * down, (kw - 1 - j) * right) for i in range(kh) for j in range(kw)]
    return _summed(padded, corners, x, precision).reshape(kh, kw, n, c).swapaxes(2, 3).astype(kernel.dtype)


def _summed(planes: jax.Array, corners: Sequence[Pair], pixels: jax.Array, precision: Any) -> jax.Array:
    """`sum_{b, y, x} planes[b, p, y + top, x + left] pixels[b, y, x, c]` for each corner: `[corners * p, c]` float32.

    For a block of rows at a time the planes seen from all corners lie beside each other. They are planes, and not
    pixels with their channels, since XLA's CPU has another routine for a product whose left side is transposed: it asks
    for memory ten times a product, 20,000 times in FC-DenseNet56's step (4,000 times so). In a process that had
    compiled the program, where glibc searches long for each, that step took 3.16 s, and 2.90 s so; as long as before
    (1.00) in one that had read it from the compilation cache. The batch axis stays in the sum, so that a batch split
    over devices is summed once, at the end.

    Args:
      planes: `[b, p, ...]`.
      corners: row and column from which the planes are seen, at the size of the pixels' image.
      pixels: `[b, h, w, c]`.
      precision: as `jax.lax.dot_general`.
    """
    (b, h, w, c), p = pixels.shape, planes.shape[1]
    most = max(1, BLOCK // (w * (len(corners) * p + c)))
    rows = max(r for r in range(1, min(most, h) + 1) if h % r == 0)
    beneath = max(top for top, _ in corners)
    dot = functools.partial(lax.dot_general, dimension_numbers=(((2,), (1,)), ((0,), (0,))), precision=precision)

    def body(block: jax.Array, total: jax.Array) -> jax.Array:
        seen = lax.dynamic_slice_in_dim(planes, block * rows, rows + beneath, 2)
        each = [seen[:, :, top : top + rows, left : left + w] for top, left in corners]
        all_taps = jnp.concatenate(each, axis=1).astype(jnp.float32).reshape(b, len(corners) * p, rows * w)
        part = lax.dynamic_slice_in_dim(pixels, block * rows, rows, 1).astype(jnp.float32)
        return total + dot(all_taps, part.reshape(b, rows * w, c))

    return sum_of_images(lax.fori_loop(0, h // rows, body, jnp.zeros((b, len(corners) * p, c), jnp.float32)))
