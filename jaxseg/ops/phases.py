"""Atrous convolution on NVIDIA GPUs: a plain one over the phases of its rate, products, or taps.

XLA hands a convolution's kernel gradient to cuDNN's own routine for it only where the rate is 1. At larger rates, which
the gradient has as strides, it becomes a convolution whose images are the channels, with transposed copies of both
sides. Here pixels of one phase `pixel mod rate` go beside each other, one small image a phase, and the rate is gone;
where padding takes many of the products, each tap is one product over the pixels that it sees (`ops/taps.py`).
On an H200, bfloat16, kernel 3x3, in profiles of DeepLab v3's train step, whose kernels took 75.8 ms with XLA's own and
49.6 with these (and other changes of docs/gpu.md); the matrix rate is 755 TFLOP/s:

| input, channels, rate         | share | XLA's own, TFLOP/s with padding | here                            |
|-------------------------------|-------|---------------------------------|---------------------------------|
| 16x65x65, 256 -> 256, 2       | 0.96  | 1.27 ms, 63                     | 0.12 ms and its copies          |
| 16x65x65, 512 -> 512, 4       | 0.92  | 2.82 ms, 113                    | 0.39 ms and its copies          |
| 16x65x65, 2048 -> 256, 12     | 0.77  | 4.49 ms, 142                    | 0.90 ms and one copy of 0.36    |
| 16x65x65, 2048 -> 256, 24, 36 | 0.5   | 4.44 ms, 144; 4.40 ms, 145      | taps, several products and pads |

The values and the image's gradient are cuDNN's at any rate, but slower where neighbours lie far apart in memory. Values
of 16x65x65, 2048 -> 256, bfloat16, H200: rate 1 takes 0.77 ms, 12 to 36 take 1.43; by phases 1.18, and where a phase
has two pixels a side, as at rate 36, one product of all its pixels with all taps 0.67.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.ops.stock_conv import Pads, Pair, stock_conv
from jaxseg.ops.taps import kernel_gradient_by_taps
from jaxseg.ops.window import useful_share

# Largest share of products with a pixel at which taps win.
TAPS_SHARE = 0.65
# Smallest rate at which values go by phases, and how many more pixels that may make.
PHASES_RATE = 12
MOST_PIXELS = 1.3


def can_use_phases(x: jax.Array, kernel: jax.Array, pads: Pads, dilation: Pair) -> bool:
    """Whether values and the image's gradient go by phases: 16-bit numbers, a large rate, an output of x's size."""
    pixels = 1.0
    for n, k, d, (lo, hi) in zip(x.shape[1:3], kernel.shape[:2], dilation, pads, strict=True):
        if d < PHASES_RATE or k % 2 == 0 or lo != hi or lo != d * (k // 2):
            return False
        pixels *= -(-n // d) * d / n
    return x.dtype.itemsize == 2 and pixels <= MOST_PIXELS


def conv_by_phases(x: jax.Array, kernel: jax.Array, *, dilation: Pair, precision: Any = None) -> jax.Array:
    """`stock_conv` with an odd kernel and an output of x's size, `[b, h, w, c] -> [b, h, w, n]`."""
    b, h, w, _ = x.shape
    ends = tuple((0, -n % d) for n, d in zip((h, w), dilation, strict=True))
    x = _phases(x, (ends[0], ends[1]), dilation)
    if max(x.shape[1:3]) <= 2:
        y = _by_product(x, kernel, precision)
    else:
        kh, kw = kernel.shape[:2]
        y = stock_conv(x, kernel, pads=((kh // 2, kh // 2), (kw // 2, kw // 2)), precision=precision)
    (_, rows, columns, n), (d, e) = y.shape, dilation
    together = y.reshape(b, d, e, rows, columns, n).transpose(0, 3, 1, 4, 2, 5)
    return together.reshape(b, rows * d, columns * e, n)[:, :h, :w]


def input_gradient_by_phases(
    x: jax.Array, kernel: jax.Array, g: jax.Array, *, dilation: Pair, precision: Any = None
) -> jax.Array:
    """The gradient of x: the same convolution of the cotangent with the kernel turned round."""
    turned = lax.rev(kernel, (0, 1)).swapaxes(2, 3)
    return conv_by_phases(g, turned, dilation=dilation, precision=precision).astype(x.dtype)


def _by_product(x: jax.Array, kernel: jax.Array, precision: Any) -> jax.Array:
    """Images `[b, h, w, c]` of one or two pixels a side: each output reads all pixels, by the taps that they are at."""
    (b, h, w, c), (kh, kw, _, n) = x.shape, kernel.shape
    zeros = jnp.zeros((c, n), kernel.dtype)

    def tap(rows: int, columns: int) -> jax.Array:
        inside = abs(rows) <= kh // 2 and abs(columns) <= kw // 2
        return kernel[rows + kh // 2, columns + kw // 2] if inside else zeros

    pixels = [(i, j) for i in range(h) for j in range(w)]
    matrix = jnp.block([[tap(i - o, j - p) for o, p in pixels] for i, j in pixels])
    return jnp.dot(x.reshape(b, h * w * c), matrix, precision=precision).reshape(b, h, w, n)


def atrous_kernel_gradient(
    x: jax.Array, kernel: jax.Array, g: jax.Array, *, pads: Pads, dilation: Pair, precision: Any = None
) -> jax.Array:
    """As `kernel_gradient_by_phases`, or by taps where padding takes many products."""
    share = useful_share((x.shape[1], x.shape[2]), (kernel.shape[0], kernel.shape[1]), pads, dilation)
    way = kernel_gradient_by_taps if 0 < share <= TAPS_SHARE else kernel_gradient_by_phases
    return way(x, kernel, g, pads=pads, dilation=dilation, precision=precision)


def kernel_gradient_by_phases(
    x: jax.Array, kernel: jax.Array, g: jax.Array, *, pads: Pads, dilation: Pair, precision: Any = None
) -> jax.Array:
    """`dkernel[i, m, n] = sum_bpu x[b, d (u + i) + p - lo, m] g[b, d u + p, n]`, p the phase, along both axes.

    Args:
      x: `[b, h, w, c]`.
      kernel: `[kh, kw, c, n]`, for its shape and dtype.
      g: `[b, h', w', n]`, the output's cotangent.
      pads: (before, after) for rows and for columns, of the forward call.
      dilation: rows, columns.
      precision: as `jax.lax.conv_general_dilated`.

    Returns:
      `[kh, kw, c, n]` of the kernel's dtype.
    """
    images, outputs = [], []
    for n, out, k, (lo, _), d in zip(x.shape[1:3], g.shape[1:3], kernel.shape[:2], pads, dilation, strict=True):
        whole = -(-out // d) * d
        images.append((lo, whole + (k - 1) * d - n - lo))
        outputs.append((0, whole - out))
    x, g = _phases(x, (images[0], images[1]), dilation), _phases(g, (outputs[0], outputs[1]), dilation)
    _, backward = jax.vjp(lambda kernel: stock_conv(x, kernel, precision=precision), kernel)
    return backward(g)[0]


def _phases(x: jax.Array, pads: Pads, rate: Pair) -> jax.Array:
    """`[b, h, w, c]` padded, then `[b rows columns, h / rows, w / columns, c]`: one image a phase."""
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)))
    (b, h, w, c), (d, e) = x.shape, rate
    apart = x.reshape(b, h // d, d, w // e, e, c).transpose(0, 2, 4, 1, 3, 5)
    return apart.reshape(b * d * e, h // d, w // e, c)
