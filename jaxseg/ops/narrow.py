"""XLA's CPU convolution of few channels: filled up to fours, and columns of the output abreast.

XLA's CPU (YNNPACK, jaxlib 0.10) is slow, up to ten times, where the products a number, kh kw c, are no multiple of
four, and where an image of up to 16 channels gets up to 16. Channels of zeros make the first a multiple of four. For
the second, neighbouring columns of the output are channels of one, by a kernel that holds the shifted kernels: it has
products with zeros, but fewer pixels. With a rate along the columns, where that would be mostly zeros, the image is
filled up to 20 channels. One core with AVX-512, float32, 3x3, milliseconds, medians of nine (PyTorch 2.13; -: not
measured):

| input, channels, stride, rate | XLA's convolution | here                  | PyTorch |
|-------------------------------|-------------------|-----------------------|---------|
| 4x256x256, 16 -> 16           | 23.7              | 16.4, 2 columns       | 12.7    |
| 4x256x256, 8 -> 16            | 14.9              | 8.8, 2 columns        | 6.6     |
| 4x256x256, 8 -> 8             | 15.1              | 7.1, 4 columns        | 6.1     |
| 4x256x256, 16 -> 8            | 24.6              | 13.2, 4 columns       | 13.0    |
| 3x224x224, 16 -> 12           | 14.2              | 7.9, 2 columns        | -       |
| 2x128x128, 3 -> 16            | 2.1               | 0.6, 2 columns of 4   | -       |
| 2x128x128, 11 -> 12           | 3.2               | 1.4, 2 columns of 12  | -       |
| 4x256x256, 21 -> 16           | 33.2              | 19.9, 24 channels     | 16.3    |
| 2x64x64, 21 -> 48             | 2.5               | 1.6, 24 channels      | -       |
| 2x64x64, 21 -> 80             | 4.0               | 2.7, 24 channels      | -       |
| 2x64x64, 22 -> 48             | 2.5               | 1.6, 24 channels      | -       |
| 4x256x256, 3 -> 24            | 52                | 6.8, 4 channels       | -       |
| 4x256x256, 3 -> 32            | 21.9              | 8.4, 4 channels       | 4.9     |
| 4x256x256, 3 -> 32, 2         | 5.3               | 2.3, 4 channels       | 1.7     |
| 2x256x256, 3 -> 32, 7x7, 2    | 13.5              | 4.4, 4 channels       | -       |
| 2x128x128, 16 -> 16, 1, 2     | 4.1               | 2.3, 20 channels      | -       |
| 2x128x128, 11 -> 16, 1, 2     | 4.9               | 2.2, 20 channels      | -       |

Left as they are: 2x64x64, 21 -> 64 1.9 (filled up 2.1), 21 -> 256 7.3 (8.4), 22 -> 32 1.0 (1.1); 4x256x256, 3 -> 48 8.3
(12), 3 -> 64 17.0 (20; 2 columns 17.6); 2x128x128, 20 -> 16 1.9 (2 columns 2.4), 16 -> 32 3.0 (2 columns 3.9).

Its kernel gradient is slow for up to 16 channels out, whatever comes in: columns of the cotangent abreast make the same
sums over fewer pixels. One core, the other busy, milliseconds: XLA's, filled up to 32 channels out, columns abreast and
PyTorch's:

| input, channels, stride           | XLA's | 32 channels | here | PyTorch |
|-----------------------------------|-------|-------------|------|---------|
| 4x256x256, 3 -> 16, 2             | 8.9   | 3.6         | 2.3  | 0.8     |
| 4x256x256, 3 -> 8, 2              | 4.9   | 2.4         | 1.9  | 0.6     |
| 4x256x256, 3 -> 4, 2              | 5.1   | 2.4         | 1.9  | 0.6     |
| 2x256x256, 3 -> 16, 7x7, 2        | 31    | 5.8         | 3.3  | 2.1     |
| 2x256x256, 3 -> 16, 5x5, 4        | 3.0   | 1.1         | 0.8  | 0.3     |
| 4x128x128, 16 -> 12, 2            | 7.0   | 3.0         | 2.6  | 0.8     |
| 4x128x128, 16 -> 16, 2            | 6.8   | 3.0         | 2.4  | 0.8     |
| 4x64x64, 64 -> 16, 2              | 7.7   | 3.3         | 2.7  | 1.0     |
| 4x64x64, 256 -> 16, 2             | 36    | 16          | 13   | 9.1     |
| 2x64x64, 512 -> 8, 2              | 59    | 18          | 19   | 4.4     |

More than 16 channels out are left: 3 -> 24 2.5 (2 columns 3.3), 3 -> 40 5.4 (64 channels 5.6), 64 -> 80 7.7 (96
channels 8.1); 3 -> 48 10.4 (64 channels 5.5), but 16 -> 48 4.3 (4.6). At stride 1 thin kernel gradients go by rows and
shifts (`ops/thin.py`): 16 -> 16 at 4x256x256 27, columns abreast 25; 16 -> 8 14 and 17.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.ops.stock_conv import Pads, Pair, stock_conv
from jaxseg.ops.window import in_float32

FEW = 16  # channels in, and channels out, up to which columns go abreast
TOGETHER = 32  # channels out of all columns abreast, at most
MOST_COLUMNS = 8
BEYOND = 20  # channels to fill up to with a rate
# An image of so many channels is filled up for up to so many out; one of more for all but multiples of the last, of
# half the last where the number of channels is even.
FEWER, THIN, MULTIPLE = 8, 32, 64
PIXELS = 2**14  # of the output, at least: below there is less than a millisecond to gain
GRADIENT_PIXELS = 2**10  # of the cotangent, for the kernel gradient


class Narrow(NamedTuple):
    """Channels of zeros more, and columns of the output that are channels of one."""

    zeros: int = 0
    columns: int = 1


def narrow(c: int, n: int, rate: int, pixels: int) -> Narrow:
    """What `c -> n` channels get, at a rate along the columns, for a number of the output's pixels over all images."""
    if pixels < PIXELS:
        return Narrow()
    if max(c, n) <= FEW:
        columns = min(2 ** (TOGETHER // n).bit_length() // 2, MOST_COLUMNS)
        return Narrow(-c % 4, columns) if rate == 1 else Narrow(BEYOND - c)
    odd = c % 2 == 1
    if c > FEWER:
        slow = n % (MULTIPLE if odd else MULTIPLE // 2) != 0
    else:
        slow = n <= (THIN if odd else FEW)
    return Narrow(-c % 4 if slow else 0)


def fill(x: jax.Array, axis: int, size: int) -> jax.Array:
    """x with zeros at the end of an axis."""
    edges = [(0, size - x.shape[axis] if a == axis else 0, 0) for a in range(x.ndim)]
    return x if x.shape[axis] == size else lax.pad(x, jnp.zeros((), x.dtype), edges)


def narrow_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    way: Narrow,
    strides: Pair = (1, 1),
    pads: Pads,
    dilation: Pair = (1, 1),
    precision: Any = None,
) -> jax.Array:
    """`stock_conv` of one group, `[b, h, w, c]` with `[kh, kw, c, n]`; of an image that has its channels already too.

    Output column `q m + j` of m columns abreast is made by the kernel that lies `j` strides to the right, of
    `kw + (m - 1) stride` columns.
    """
    (kh, kw, c, n), (down, right), m = kernel.shape, strides, way.columns
    c = c + way.zeros
    x, kernel = fill(x, 3, c), fill(kernel, 2, c)
    if m == 1:
        return stock_conv(x, kernel, strides, pads, dilation, precision=precision)
    if dilation[1] != 1:
        raise ValueError(f"columns abreast take a rate of 1 along the columns, not {dilation[1]}")
    before, after = pads[1]
    columns = (x.shape[2] + before + after - kw) // right + 1
    shifted = (
        lax.pad(kernel, jnp.zeros((), x.dtype), ((0, 0, 0), (j * right, (m - 1 - j) * right, 0), (0, 0, 0), (0, 0, 0)))
        for j in range(m)
    )
    wide = jnp.stack(list(shifted), axis=3).reshape(kh, kw + (m - 1) * right, c, m * n)
    beyond = (before, after + -columns % m * right)
    y = stock_conv(x, wide, (down, m * right), (pads[0], beyond), dilation, precision=precision)
    return y.reshape(*y.shape[:2], -1, n)[:, :, :columns]


def columns_of_gradient(g: Sequence[int], rate: int) -> int:
    """How many columns of a cotangent `[b, h', w', n]` are channels of one for the kernel gradient; 1: none."""
    b, rows, columns, n = g
    if n > FEW or rate != 1 or b * rows * columns < GRADIENT_PIXELS:
        return 1
    return min(2 ** (TOGETHER // n).bit_length() // 2, MOST_COLUMNS)


def kernel_gradient_of_columns(
    gradient: Callable[..., jax.Array],
    x: jax.Array,
    kernel: jax.Array,
    g: jax.Array,
    *,
    columns: int,
    strides: Pair,
    pads: Pads,
    **options: Any,
) -> jax.Array:
    """`gradient(x, kernel, g, ..)` of a stride-1 or strided convolution, of fewer pixels and more channels out.

    Column `q m + j` of m abreast is column q's channels `j n ..`: of their gradient, of a kernel of `kw + (m - 1)
    stride` columns, tap i of the kernel is the sum over j of those at `i + j stride`.
    """
    (kh, kw, c, n), (down, right), m = kernel.shape, strides, columns
    beyond = -g.shape[2] % m
    wide = fill(g, 2, g.shape[2] + beyond).reshape(*g.shape[:2], -1, m * n)
    taps = jnp.zeros((kh, kw + (m - 1) * right, c, m * n), kernel.dtype)
    edges = (pads[0], (pads[1][0], pads[1][1] + beyond * right))
    found = gradient(x, taps, wide, strides=(down, m * right), pads=edges, **options)
    parts = (in_float32(found[:, j * right : j * right + kw, :, j * n : (j + 1) * n]) for j in range(m))
    return functools.reduce(jnp.add, parts).astype(found.dtype)
