"""The kernel gradient of an atrous convolution on NVIDIA GPUs: that of a plain one over the rate's phases, or by taps.

XLA hands a convolution's kernel gradient to cuDNN's own routine for it only where the rate is 1. At larger rates, which
the gradient has as strides, it becomes a convolution whose images are the channels, with transposed copies of both
sides. Here pixels of one phase `pixel mod rate` go beside each other, one small image a phase, and the rate is gone;
where padding takes many of the products, each tap is one product over the pixels that it sees (`ops/taps.py`).
XLA's own on an H200, bfloat16, kernel 3x3, in the profile of DeepLab v3's train step, beside its own kernel gradient of
a convolution of rate 1 and the matrix rate (16x32x32, 256 -> 256, in U-Net's: 0.043 ms, 450 TFLOP/s; 755 TFLOP/s):

| input, channels, rate         | share | XLA's own | TFLOP/s with the padding |
|-------------------------------|-------|-----------|--------------------------|
| 16x65x65, 256 -> 256, 2       | 0.96  | 1.27 ms   | 63                       |
| 16x65x65, 512 -> 512, 4       | 0.92  | 2.82 ms   | 113                      |
| 16x65x65, 2048 -> 256, 12     | 0.77  | 4.49 ms   | 142                      |
| 16x65x65, 2048 -> 256, 24     | 0.57  | 4.44 ms   | 144                      |
| 16x65x65, 2048 -> 256, 36     | 0.40  | 4.40 ms   | 145                      |

The ways here were compiled for that GPU and compared with a CPU there, not yet timed.
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
