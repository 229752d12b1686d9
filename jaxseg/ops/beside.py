"""Blocks of rows beside each other, so that XLA's CPU cuts a convolution in tasks for more than one thread.

XLA's CPU (YNNPACK, jaxlib 0.10) shares a convolution out along its width and its channels out, not along its rows and
images. A task is a tile of `m` columns and `n` channels: it grows until `(m + n) min(kh kw c, 1024)` is 65536. Of 64
columns and 64 channels it makes one task, of whatever batch, and one thread does it all. Here the image is cut in
blocks of rows, each with the rows around it that its taps see, and the blocks lie beside each other, so that the map
is so many times wider. The copies cost something for each pixel and pay where a pixel has many products.

Two cores, float32, 3x3, forward, milliseconds of wall time (of the processor), alone:

| input, channels      | products a number | one map       | beside each other     |
|----------------------|-------------------|---------------|-----------------------|
| 4x64x64, 64 -> 64    | 288               | 12.4 (12.4)   | 7.3 (13.8), 2 blocks  |
| 4x128x128, 32 -> 128 | 230               | 48.0 (48.1)   | 28.7 (56.6), 2 blocks |
| 4x128x128, 32 -> 32  | 144               | 12.2 (12.3)   | 8.7 (16.6), 4 blocks  |
| 3x112x112, 12 -> 144 | 100               | 13.7 (13.8)   | 9.7 (16.3), 8 blocks  |
| 4x256x256, 16 -> 32  | 96                | 31.7 (31.8)   | 18.9 (35.4), 4 blocks |
| 4x256x256, 32 -> 16  | 96                | 26.1 (26.2)   | 20.6 (38.2), 2 blocks |
| 3x224x224, 48 -> 12  | 86                | 24.0 (24.3)   | 19.5 (33.8), 2 blocks |

The image's gradient is the convolution of the cotangent with the turned kernel, and cut by the same rule; best of
eleven on a machine that others share:

| input, channels        | one map | beside each other |
|------------------------|---------|-------------------|
| 4x64x64, 64 -> 64      | 11.7    | 6.8, 2 blocks     |
| 4x128x128, 128 -> 32   | 50.2    | 29.9, 2 blocks    |
| 4x128x128, 32 -> 32    | 13.3    | 9.3, 4 blocks     |
| 4x256x256, 16 -> 21    | 35.4    | 24.9, 4 blocks    |
| 4x256x256, 32 -> 16    | 24.6    | 19.3, 4 blocks    |
| 3x112x112, 216 -> 12   | 19.8    | 14.0, 8 blocks    |
| 3x224x224, 180 -> 12   | 66.8    | 52.3, 4 blocks    |

XLA's CPU does run two operations at once, but seldom: the one that finishes an operation goes on with all that became
ready. Of the image's and the kernel's gradient each then has one thread, and the other idles (U-Net's decoder: 53 and
52 ms in turn). Kernel gradients of up to 64 channels out stay one task: with the sides changed round, or with channels
in along the width, they took up to seven times the time.

Images beside each other do as well, but mix a batch that is split over devices. In a program of two such convolutions,
one for each half of the batch, XLA's CPU does not run both at once.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.ops.narrow import Narrow, narrow, narrow_conv
from jaxseg.ops.stock_conv import Pads, Pair
from jaxseg.ops.window import out_size

# The tile of a task: it starts as so many columns and channels, and grows to at least LEAST of both.
COLUMNS, CHANNELS, LEAST = 16, 64, 64
COST, AREA, DEPTH = 65536, 65536, 1024
# Fewest products for each number of input and output that is copied, and for the whole convolution.
PRODUCTS = 80
WORK = 2**24
BLOCKS = (2, 4, 8)
HALO = 0.25  # most rows around a block, as a share of its own
# The largest task's share of all: above the first the map is cut, in the fewest blocks that bring it below the second.
ALONE, SHARED = 0.75, 0.6


def largest_task(width: int, channels: int, depth: int) -> float:
    """Share of a convolution's work in the largest of the tasks that XLA's CPU makes of it, 0 .. 1.

    Args:
      width: columns of the output.
      channels: of the output.
      depth: products a number of the output, `kh kw c`.
    """
    depth, least = min(depth, DEPTH), min(width, LEAST) * min(channels, LEAST)
    m, n = min(width, COLUMNS), min(channels, CHANNELS)
    while (m, n) != (width, channels):
        if m * n >= least and ((m + n) * depth >= COST or m * n >= AREA):
            break
        if n < channels and (4 * n <= m or m == width):
            n = min(2 * n, channels)
        else:
            m = min(2 * m, width)
    return m * n / (width * channels)


class Beside(NamedTuple):
    """The number of blocks of rows beside each other, and how they are convolved; by default the whole map as it is."""

    blocks: int = 1
    narrow: Narrow = Narrow()


def beside(image: Sequence[int], kernel: Sequence[int], pads: Pads, dilation: Pair) -> Beside:
    """How to make the convolution of `[b, h, w, c]` with `[kh, kw, c, n]` at stride 1."""
    (b, h, w, c), (kh, kw, _, n) = image, kernel
    rows, columns = out_size((h, w), (kh, kw), pads, dilation)
    way = narrow(c, n, dilation[1], b * rows * columns)
    return Beside(_blocks(image, kernel, pads, dilation, way), way)


def _blocks(image: Sequence[int], kernel: Sequence[int], pads: Pads, dilation: Pair, way: Narrow) -> int:
    (b, h, w, c), (kh, kw, _, n), m = image, kernel, way.columns
    (down, right) = ((k - 1) * d for k, d in zip((kh, kw), dilation, strict=True))
    (rows, columns), depth = out_size((h, w), (kh, kw), pads, dilation), kh * (kw + m - 1) * (c + way.zeros)
    copied = min(min(pads[0]), min(pads[1])) >= 0 and depth * n >= PRODUCTS * (c + n)
    if not copied or b * rows * columns * depth * n < WORK or largest_task(-(-columns // m), m * n, depth) <= ALONE:
        return 1
    fit = (r for r in BLOCKS if down <= HALO * (rows // r))
    return next((r for r in fit if largest_task(r * -(-(columns + right) // m), m * n, depth) <= SHARED), 1)


def convolve_beside(
    x: jax.Array,
    kernel: jax.Array,
    *,
    pads: Pads,
    dilation: Pair,
    cut: Beside,
    precision: Any = None,
) -> jax.Array:
    """Stride-1 convolution of blocks of rows beside each other; as `stock_conv`, to the last bit or nearly.

    Block `i` is the output's rows `i s .. (i + 1) s`, `s = ceil(rows / blocks)`; between two blocks lie the columns of
    padding of both.
    """
    number, way = cut
    narrowly = functools.partial(narrow_conv, kernel=kernel, way=way, dilation=dilation, precision=precision)
    if number == 1:
        return narrowly(x, pads=pads)
    b, h, w, _ = x.shape
    down, right = ((k - 1) * d for k, d in zip(kernel.shape[:2], dilation, strict=True))
    (top, bottom), (left, _), columns = *pads, w + sum(pads[1]) - right
    rows = h + top + bottom - down
    size, width = -(-rows // number), -(-(columns + right) // way.columns) * way.columns
    zero = jnp.zeros((), x.dtype)
    parts = []
    for first in range(0, number * size, size):
        start, stop = first - top, first - top + size + down
        seen = lax.slice_in_dim(x, min(max(start, 0), h), min(max(stop, 0), h), axis=1)
        before = min(max(-start, 0), size + down)
        after = size + down - before - seen.shape[1]
        edges = ((before, after, 0), (left, width - left - w, 0), (0, way.zeros, 0))
        parts.append(lax.pad(seen, zero, ((0, 0, 0), *edges)))
    y = narrowly(jnp.concatenate(parts, axis=2), pads=((0, 0), (0, right)))
    y = y.reshape(b, size, number, width, -1)[:, :, :, :columns]
    return y.swapaxes(1, 2).reshape(b, number * size, columns, -1)[:, :rows]
