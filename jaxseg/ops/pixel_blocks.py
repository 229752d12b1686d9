"""Strided convolution of images with few channels on NVIDIA GPUs: pixels of a block become its channels.

A network's first convolution has three channels, which cuDNN fills up to eight and multiplies at a rate that suits
none of its routines. Blocks of stride x stride pixels, twelve channels for a stride of 2, make it one of stride 1 with
a smaller kernel. 16x513x513x3 -> 64, 7x7, stride 2, bfloat16, H200, ms: values 0.64 by cuDNN, 0.62 of eight channels,
0.27 here; kernel gradient 0.42, 0.39, 0.22.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.ops.aligned import aligned_conv, aligned_kernel_gradient
from jaxseg.ops.stock_conv import Pads, Pair

MAX_CHANNELS = 16


def can_use_blocks(x: jax.Array, strides: Pair, dilation: Pair) -> bool:
    """Whether the numbers are of 16 bits and a block has no more channels than the matrix units take at once."""
    rows, columns = strides
    few = x.shape[3] * rows * columns <= MAX_CHANNELS
    return x.dtype.itemsize == 2 and rows * columns > 1 and dilation == (1, 1) and few


def conv_of_blocks(x: jax.Array, kernel: jax.Array, *, strides: Pair, pads: Pads, precision: Any = None) -> jax.Array:
    """`stock_conv` at rate 1: `y[o] = sum_qr kernel[s q + r] x[s (o + q) + r - lo]`, r within a block of s pixels."""
    taps = _taps(kernel, strides)
    return aligned_conv(_blocks(x, taps, strides, pads, kernel), _of_blocks(kernel, taps, strides), precision=precision)


def kernel_gradient_of_blocks(
    x: jax.Array, kernel: jax.Array, g: jax.Array, *, strides: Pair, pads: Pads, precision: Any = None
) -> jax.Array:
    """The gradient of the kernel `[kh, kw, c, n]`, of x's dtype."""
    taps = _taps(kernel, strides)
    of_blocks = _of_blocks(kernel, taps, strides)
    gradient = aligned_kernel_gradient(_blocks(x, taps, strides, pads, kernel), of_blocks, g, precision=precision)
    kh, kw, c, n = kernel.shape
    apart = gradient.reshape(*taps, *strides, c, n).transpose(0, 2, 1, 3, 4, 5)
    return apart.reshape(taps[0] * strides[0], taps[1] * strides[1], c, n)[:kh, :kw]


def _taps(kernel: jax.Array, strides: Pair) -> Pair:
    """Blocks that the kernel reaches over, rows and columns."""
    return -(-kernel.shape[0] // strides[0]), -(-kernel.shape[1] // strides[1])


def _of_blocks(kernel: jax.Array, taps: Pair, strides: Pair) -> jax.Array:
    """`[kh, kw, c, n]` as `[taps, taps, s s c, n]`, zeros at its end."""
    (kh, kw, c, n), (rows, columns) = kernel.shape, strides
    widths = ((0, taps[0] * rows - kh, 0), (0, taps[1] * columns - kw, 0), (0, 0, 0), (0, 0, 0))
    kernel = lax.pad(kernel, jnp.zeros((), kernel.dtype), widths)
    apart = kernel.reshape(taps[0], rows, taps[1], columns, c, n).transpose(0, 2, 1, 3, 4, 5)
    return apart.reshape(*taps, rows * columns * c, n)


def _blocks(x: jax.Array, taps: Pair, strides: Pair, pads: Pads, kernel: jax.Array) -> jax.Array:
    """`[b, h, w, c]`, padded, as `[b, h' + taps - 1, w' + taps - 1, s s c]` for an output of h' x w'."""
    widths, sides = [(0, 0, 0)], []
    for n, k, t, s, (lo, hi) in zip(x.shape[1:3], kernel.shape[:2], taps, strides, pads, strict=True):
        sides.append((n + lo + hi - k) // s + t)
        widths.append((lo, s * sides[-1] - n - lo, 0))
    x = lax.pad(x, jnp.zeros((), x.dtype), [*widths, (0, 0, 0)])
    (b, _, _, c), (rows, columns) = x.shape, strides
    apart = x.reshape(b, sides[0], rows, sides[1], columns, c).transpose(0, 1, 3, 2, 4, 5)
    return apart.reshape(b, *sides, rows * columns * c)
