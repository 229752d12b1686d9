"""Depthwise convolution as shifted multiply-adds, with its own gradient: the lowering for CPUs, and of rates for GPUs.

Stock XLA lowers a depthwise convolution on a CPU to a loop without vectors. Here each kernel tap is one multiply-add of
a shifted slice with a row of C weights, which XLA fuses into one vectorised loop over the output.
Milliseconds on two cores, float32, kernel 3x3, best of 5, forward / weight gradient:

| input, stride, rate       | XLA's convolution | this file   |
|---------------------------|-------------------|-------------|
| 2x64x64x256, 1, 1         | 103 / -           | 1.5 / 4.5   |
| 4x176x176x32, 1, 1        | 200 / -           | 2.3 / 13    |
| 4x88x88x144, 2, 1         | 60 / -            | 2.9 / 3.2   |
| 4x22x22x960, 1, 2         | 92 / -            | 1.2 / 2.3   |

Weight gradient at 2x64x64x256: nine reductions 48 ms, nine einsum 53, ones @ product 64, loop over the rows with nine
accumulators of [b, w, c] 4.5. Only the last one runs through the data in memory order.

On an H200 cuDNN's routines are the quicker ones at rate 1, but not at others, where a kernel gradient is a sum a tap.
Milliseconds, bfloat16, forward / image's / kernel gradient, 16x33x33x320 at rate 12: 0.251 / 0.251 / 0.435 by XLA's
convolution, 0.048 / 0.076 / 0.125 here (padding written by itself: 0.063 / 0.076; the loop over rows 0.648); at rate 1
16x129x129x144: 0.083 / 0.080 / 0.113 and 0.210 / 0.192 / 0.588; 16x33x33x960: 0.154 / 0.078 / 0.071 and
0.094 / 0.112 / 0.225.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.ops.interlace import interlaced_by_stacks

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]


def _pad(x: jax.Array, pads: Pads, apart: bool = True) -> jax.Array:
    """Zero-pads (or crops, where negative) h and w of `[b, h, w, c]` and keeps the result apart.

    Without the barrier XLA fuses the padding, and whatever made `x`, into each of the taps: it would be computed nine
    times, and the padding's select keeps the loop from being vectorised. On a GPU the copy would cost more.
    """
    zero = jnp.zeros((), x.dtype)
    config = ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0))
    if apart:
        return lax.optimization_barrier(lax.pad(x, zero, config))
    # What made x is computed once all the same.
    return lax.pad(lax.optimization_barrier(x), zero, config)


def depthwise_forward(
    x: jax.Array, kernel: jax.Array, *, strides: Pair, pads: Pads, dilation: Pair, apart: bool = True
) -> jax.Array:
    """`y[b, o, p, c] = sum_ij kernel[i, j, 0, c] x[b, s o + d i - lo, s p + d j - lo, c]`, summed in float32.

    Args:
      x: `[b, h, w, c]`.
      kernel: `[kh, kw, 1, c]`.
      strides: rows, columns.
      pads: (before, after) for rows and for columns.
      dilation: rows, columns.
      apart: the padded image is written by itself.

    Returns:
      `[b, h', w', c]` of x's dtype.
    """
    kh, kw = kernel.shape[:2]
    padded = _pad(x, pads, apart)
    b, hp, wp, c = padded.shape
    (sh, sw), (dh, dw) = strides, dilation
    oh, ow = (hp - (kh - 1) * dh - 1) // sh + 1, (wp - (kw - 1) * dw - 1) // sw + 1
    weights = kernel.astype(jnp.float32)
    total = jnp.zeros((b, oh, ow, c), jnp.float32)
    for i in range(kh):
        for j in range(kw):
            start, stop = (i * dh, j * dw), (i * dh + (oh - 1) * sh + 1, j * dw + (ow - 1) * sw + 1)
            tap = lax.slice(padded, (0, *start, 0), (b, *stop, c), (1, sh, sw, 1))
            total = total + tap.astype(jnp.float32) * weights[i, j, 0]
    return total.astype(x.dtype)


def depthwise_input_gradient(
    g: jax.Array,
    kernel: jax.Array,
    *,
    size: Pair,
    strides: Pair,
    pads: Pads,
    dilation: Pair,
    apart: bool = True,
) -> jax.Array:
    """The gradient of `depthwise_forward` with respect to x: shifted multiply-adds with the flipped kernel.

    Row q of the padded input has phase `q mod s`; only the taps with `d i mod s` equal to it reach it, so that each
    phase is a small stride-1 sum over g and no multiplication with the zeros of an up-sampled g is done.

    Args:
      g: `[b, h', w', c]`, the output's cotangent.
      kernel: `[kh, kw, 1, c]`.
      size: h, w of x.
      strides, pads, dilation: those of the forward call.
      apart: the padded cotangent is written by itself.

    Returns:
      `[b, h, w, c]` of g's dtype.
    """
    kh, kw = kernel.shape[:2]
    b, oh, ow, c = g.shape
    (sh, sw), (dh, dw) = strides, dilation
    hp, wp = size[0] + sum(pads[0]), size[1] + sum(pads[1])
    uh, uw = -(-hp // sh), -(-wp // sw)
    top, left = (kh - 1) * dh // sh, (kw - 1) * dw // sw
    padded = _pad(g, ((top, uh - oh), (left, uw - ow)), apart)
    weights = kernel.astype(jnp.float32)

    def phase(a: int, e: int) -> jax.Array:
        total = jnp.zeros((b, uh, uw, c), jnp.float32)
        for i in [i for i in range(kh) if i * dh % sh == a]:
            for j in [j for j in range(kw) if j * dw % sw == e]:
                y, x = top - i * dh // sh, left - j * dw // sw
                tap = lax.slice(padded, (0, y, x, 0), (b, y + uh, x + uw, c))
                total = total + tap.astype(jnp.float32) * weights[i, j, 0]
        return total.astype(g.dtype)

    full = interlaced_by_stacks([[phase(a, e) for e in range(sw)] for a in range(sh)])
    (top_pad, _), (left_pad, _) = pads
    # An input row that no window reaches (the stride skips it) lies past the end of `full`: pad it with zeros.
    edges = ((-top_pad, size[0] + top_pad - uh * sh), (-left_pad, size[1] + left_pad - uw * sw))
    return lax.pad(full, jnp.zeros((), full.dtype), ((0, 0, 0), (*edges[0], 0), (*edges[1], 0), (0, 0, 0)))


def depthwise_kernel_gradient(
    x: jax.Array, g: jax.Array, *, kernel_size: Pair, strides: Pair, pads: Pads, dilation: Pair
) -> jax.Array:
    """The gradient of `depthwise_forward` with respect to the kernel, float32: a loop over the output's rows.

    The batch axis stays in the accumulators, so that a batch split over devices is summed once, at the end.

    Args:
      x: `[b, h, w, c]`.
      g: `[b, h', w', c]`, the output's cotangent.
      kernel_size: kh, kw.
      strides, pads, dilation: those of the forward call.

    Returns:
      `[kh, kw, 1, c]` float32.
    """
    kh, kw = kernel_size
    b, oh, ow, c = g.shape
    (sh, sw), (dh, dw) = strides, dilation
    padded = _pad(x, pads)

    def row_of(a: jax.Array, index: jax.Array) -> jax.Array:
        found = lax.dynamic_index_in_dim(a, index, 1, keepdims=False, allow_negative_indices=False)
        return found.astype(jnp.float32)

    def body(row: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        g_row = row_of(g, row)
        products = []
        for i in range(kh):
            x_row = row_of(padded, row * sh + i * dh)
            for j in range(kw):
                tap = lax.slice(x_row, (0, j * dw, 0), (b, j * dw + (ow - 1) * sw + 1, c), (1, sw, 1))
                products.append(tap * g_row)
        return tuple(s + p for s, p in zip(sums, products, strict=True))

    # Zeros made from g, not constants: they carry g's sharding into the loop, constants would be replicated.
    zeros = jnp.zeros_like(g[:, 0], dtype=jnp.float32)
    sums = lax.fori_loop(0, oh, body, (zeros,) * (kh * kw))
    # One sum, not one a tap: XLA reads a program from the compilation cache in a time that grows with their number.
    return jnp.sum(jnp.stack(sums), axis=(1, 2)).reshape(kh, kw, 1, c)


def depthwise_kernel_gradient_by_sums(
    x: jax.Array, g: jax.Array, *, kernel_size: Pair, strides: Pair, pads: Pads, dilation: Pair
) -> jax.Array:
    """As `depthwise_kernel_gradient`, each tap a sum over all pixels: the form that suits a GPU."""
    kh, kw = kernel_size
    b, oh, ow, c = g.shape
    (sh, sw), (dh, dw) = strides, dilation
    padded, wide = _pad(x, pads, apart=False), g.astype(jnp.float32)
    sums = []
    for i in range(kh):
        for j in range(kw):
            start, stop = (i * dh, j * dw), (i * dh + (oh - 1) * sh + 1, j * dw + (ow - 1) * sw + 1)
            tap = lax.slice(padded, (0, *start, 0), (b, *stop, c), (1, sh, sw, 1))
            sums.append(jnp.sum(tap.astype(jnp.float32) * wide, axis=(0, 1, 2)))
    return jnp.stack(sums).reshape(kh, kw, 1, c)
