"""XLA's convolution of 16-bit numbers on NVIDIA GPUs, its channels filled up with zeros to what cuDNN takes as it is.

cuDNN's routines for the matrix units read channels in eights. It takes other numbers of them too, and then first writes
a filled-up copy of the whole image into memory of its own, on each of a convolution's three calls. Here XLA fills up,
mostly in the operation that makes the image, and cuts off where the result is read.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.ops.stock_conv import stock_conv

MULTIPLE = 8


def can_align(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether the numbers are of 16 bits and there is something to fill up."""
    return x.dtype.itemsize == 2 and any(c % MULTIPLE for c in kernel.shape[2:])


def aligned_conv(x: jax.Array, kernel: jax.Array, **options: Any) -> jax.Array:
    """`stock_conv` of one group; options as there."""
    y = stock_conv(filled(x), filled(kernel, 2), **options)
    return y[..., : kernel.shape[3]]


def aligned_input_gradient(x: jax.Array, kernel: jax.Array, g: jax.Array, **options: Any) -> jax.Array:
    """The gradient of x `[b, h, w, c]`, of its dtype."""
    kernel = filled(kernel, 2)
    shape = jax.ShapeDtypeStruct((*x.shape[:3], kernel.shape[2]), x.dtype)
    (gradient,) = jax.linear_transpose(lambda x: stock_conv(x, kernel, **options), shape)(filled(g))
    return gradient[..., : x.shape[3]]


def aligned_kernel_gradient(x: jax.Array, kernel: jax.Array, g: jax.Array, **options: Any) -> jax.Array:
    """The gradient of the kernel `[kh, kw, c, n]`, of x's dtype."""
    kh, kw, c, n = kernel.shape
    x, g = filled(x), filled(g)
    shape = jax.ShapeDtypeStruct((kh, kw, x.shape[3], g.shape[3]), x.dtype)
    (gradient,) = jax.linear_transpose(lambda kernel: stock_conv(x, kernel, **options), shape)(g)
    return gradient[:, :, :c, :n]


def filled(x: jax.Array, axes: int = 1) -> jax.Array:
    """Zeros at the end of the last `axes` axes, to a multiple of eight."""
    widths = [(0, 0, 0)] * (x.ndim - axes) + [(0, -n % MULTIPLE, 0) for n in x.shape[x.ndim - axes :]]
    return lax.pad(x, jnp.zeros((), x.dtype), widths)
