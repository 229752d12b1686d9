"""Grouped convolution as a few dense ones with block-diagonal kernels: the lowering for CPUs.

Stock XLA runs a grouped convolution on a CPU as a loop without vectors and, under `jit` with a batch that is split over
devices, gathers the whole batch on each of them first. Here neighbouring groups share a dense convolution of about 32
channels whose kernel is zero off the diagonal: some products with zeros, but every one of them in a matrix product.
CPU milliseconds (both cores together), float32, kernel 3x3, medians of 5 or 9, forward / gradient of the input / of the
kernel:

| input, groups     | XLA's       | blocks of 32     | PyTorch 2.13    |
|-------------------|-------------|------------------|-----------------|
| 2x32x32x256, 32   | 1355 in all | 4.7 / 4.2 / 5.7  | 2.2 / 1.4 / 3.0 |
| 2x64x64x128, 32   | -           | - / 8.1 / 11.8   | - / 2.7 / 5.9   |

Forward at 2x32x32x256 with blocks of 16, 32, 64, 128 channels: 4.2, 4.7, 7.4, 13.7; as im2col and a product a block of
32: 8.2; as 72 shifted multiply-adds: 4.6. Kernel gradient as im2col and a product a block of 32: 9.2, as a product a
tap: 11.5.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.ops.canonical import canonical_conv
from jaxseg.ops.stock_conv import stock_conv

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]

# Channels (of the wider side) that one dense convolution works on.
BLOCK_CHANNELS = 32
# Elsewhere as many groups or fewer are convolved one by one: XLA gathers the batch for a grouped convolution there too.
# AlexNet has two.
FEW_GROUPS = 8


def grouped_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: Pair,
    pads: Pads,
    dilation: Pair,
    groups: int,
    precision: Any = None,
) -> jax.Array:
    """`y[.., n] = sum_ijm kernel[i, j, m, n] x[.., g(n) c / groups + m]`, g(n) being the group of the output channel n.

    On a CPU as this file's blocks, elsewhere as XLA's grouped convolution, or group by group where they are few.

    Args:
      x: `[b, h, w, c]`.
      kernel: `[kh, kw, c // groups, n]` of x's dtype.
      strides: rows, columns.
      pads: (before, after) for rows and for columns.
      dilation: rows, columns.
      groups: divides c and n.
      precision: as `jax.lax.conv_general_dilated`.

    Returns:
      `[b, h', w', n]` of x's dtype.
    """
    return _grouped(x, kernel, strides, pads, dilation, groups, precision)


def _block_diagonal(kernel: jax.Array, groups: int) -> jax.Array:
    """`[kh, kw, m, groups * p]` as the dense `[kh, kw, groups * m, groups * p]`, zero where groups would mix."""
    kh, kw, m, n = kernel.shape
    split = kernel.reshape(kh, kw, 1, m, groups, n // groups)
    same = jnp.eye(groups, dtype=bool)[:, None, :, None]
    return jnp.where(same, split, jnp.zeros((), kernel.dtype)).reshape(kh, kw, groups * m, n)


def _blocks(
    x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, dilation: Pair, groups: int, precision: Any
) -> jax.Array:
    """Every `BLOCK_CHANNELS` channels by themselves."""
    together = max(1, BLOCK_CHANNELS * groups // max(x.shape[-1], kernel.shape[-1]))
    return _in_parts(x, kernel, strides, pads, dilation, groups, together, precision)


def _few_or_stock(
    x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, dilation: Pair, groups: int, precision: Any
) -> jax.Array:
    if groups <= FEW_GROUPS:
        return _in_parts(x, kernel, strides, pads, dilation, groups, 1, precision)
    return stock_conv(x, kernel, strides, pads, dilation, groups, precision)


def _in_parts(
    x: jax.Array,
    kernel: jax.Array,
    strides: Pair,
    pads: Pads,
    dilation: Pair,
    groups: int,
    together: int,
    precision: Any,
) -> jax.Array:
    """One dense convolution for each `together` groups."""
    m, n = x.shape[-1] // groups, kernel.shape[-1] // groups
    parts = []
    for first in range(0, groups, together):
        last = min(first + together, groups)
        part = lax.slice_in_dim(kernel, first * n, last * n, axis=3)
        channels = lax.slice_in_dim(x, first * m, last * m, axis=3)
        dense = _block_diagonal(part, last - first)
        parts.append(canonical_conv(channels, dense, strides, pads, dilation, precision))
    return jnp.concatenate(parts, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5, 6))
def _grouped(
    x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, dilation: Pair, groups: int, precision: Any
) -> jax.Array:
    return _forward(x, kernel, strides, pads, dilation, groups, precision)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6), inline=True)
def _forward(
    x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, dilation: Pair, groups: int, precision: Any
) -> jax.Array:
    shared: dict[str, Any] = {"strides": strides, "pads": pads, "dilation": dilation}
    shared |= {"groups": groups, "precision": precision}
    blocks, stock = functools.partial(_blocks, **shared), functools.partial(_few_or_stock, **shared)
    return lax.platform_dependent(x, kernel, cpu=blocks, default=stock)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6, 7), inline=True)
def _backward(
    x: jax.Array,
    kernel: jax.Array,
    g: jax.Array,
    strides: Pair,
    pads: Pads,
    dilation: Pair,
    groups: int,
    precision: Any,
) -> tuple[jax.Array, jax.Array]:
    shared: dict[str, Any] = {"strides": strides, "pads": pads, "dilation": dilation}
    shared |= {"groups": groups, "precision": precision}

    def gradient(forward: Any) -> Any:
        return lambda x, kernel, g: tuple(jax.vjp(functools.partial(forward, **shared), x, kernel)[1](g))

    dx, dk = lax.platform_dependent(x, kernel, g, cpu=gradient(_blocks), default=gradient(_few_or_stock))
    return dx, dk


def _vjp_forward(
    x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, dilation: Pair, groups: int, precision: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _forward(x, kernel, strides, pads, dilation, groups, precision), (x, kernel)


def _vjp_backward(
    strides: Pair,
    pads: Pads,
    dilation: Pair,
    groups: int,
    precision: Any,
    residuals: tuple[jax.Array, jax.Array],
    g: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    return _backward(*residuals, g, strides, pads, dilation, groups, precision)


_grouped.defvjp(_vjp_forward, _vjp_backward)
