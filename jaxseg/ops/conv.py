"""The one place that decides how a convolution is lowered on each platform.

The choice is made with `jax.lax.platform_dependent`, that is, when the program is lowered for a platform and not when
it is traced: a program that a CPU host exports, or compiles for a TPU topology, gets the accelerator's lowering. The
branches of the other platforms are dropped before XLA sees them. It sits inside the `custom_vjp`, so that it is never
differentiated itself.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.ops import depthwise, grouped
from jaxseg.ops.canonical import canonical_conv
from jaxseg.ops.dense import convolve
from jaxseg.ops.lowering import lowering
from jaxseg.ops.pointwise import pointwise
from jaxseg.ops.stock_conv import stock_conv

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]
Padding = str | Sequence[Sequence[int]]


def conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    precision: Any = None,
) -> jax.Array:
    """2-D convolution (cross-correlation) of channels-last images, lowered as is best for the platform.

    `y[o, p, n] = sum_ijm kernel[i, j, m, n] x[s o + d i - lo, s p + d j - lo, m]`, group by group.

    Args:
      x: `[*b, h, w, c]` floating; any leading dimensions.
      kernel: `[kh, kw, c // groups, n]`, of x's dtype.
      strides: one number, or rows and columns.
      padding: "SAME" (as TensorFlow: the odd pixel goes after), "VALID", or ((before, after), (before, after)).
      dilation: atrous rate; one number, or rows and columns.
      groups: divides c and n. Depthwise: groups == c == n.
      precision: as `jax.lax.conv_general_dilated`; the CPU's depthwise lowering is always float32.

    Returns:
      `[*b, h', w', n]` of x's dtype; bfloat16 sums are float32 inside.

    Raises:
      ValueError: shapes, groups or padding do not fit; dtypes differ.
    """
    strides, dilation = _pair(strides, "strides"), _pair(dilation, "dilation")
    _check(x, kernel, groups)
    *batch, h, w, c = x.shape
    kh, kw = kernel.shape[:2]
    if padding == "VALID" and any((k - 1) * d >= n for k, d, n in zip(kernel.shape, dilation, (h, w), strict=False)):
        raise ValueError(
            f"kernel {kernel.shape[:2]} at rate {dilation} does not fit the image {(h, w)} without padding"
        )
    pads = explicit_padding(padding, size=(h, w), kernel_size=(kh, kw), strides=strides, dilation=dilation)
    kernel, pads = _without_blind_taps(kernel, (h, w), strides, pads, dilation)
    images = x if len(batch) == 1 else x.reshape(-1, h, w, c)
    if kernel.shape[:2] == (1, 1) and groups == 1:
        y = _pointwise(images, kernel, strides, pads, precision)
    elif groups > 1 and groups == c == kernel.shape[-1]:
        y = _depthwise(images, kernel, strides, pads, dilation, precision)
    elif groups > 1:
        window: dict[str, Any] = {"strides": strides, "pads": pads, "dilation": dilation}
        y = grouped.grouped_conv(images, kernel, **window, groups=groups, precision=precision)
    elif strides == (1, 1) and (chosen := lowering(images.shape, kernel.shape, pads, dilation)) is not None:
        y = convolve(images, kernel, pads, dilation, chosen, precision)
    else:
        y = canonical_conv(images, kernel, strides, pads, dilation, precision)
    return y if len(batch) == 1 else y.reshape(*batch, *y.shape[1:])


def explicit_padding(padding: Padding, *, size: Pair, kernel_size: Pair, strides: Pair, dilation: Pair) -> Pads:
    """Padding as ((before, after), (before, after)) for rows and columns.

    "SAME" as in TensorFlow: output `ceil(n / s)`, total `max((ceil(n / s) - 1) s + (k - 1) d + 1 - n, 0)`, of which
    total // 2 goes before.

    Raises:
      ValueError: neither a known name nor two pairs.
    """
    if padding == "VALID":
        return (0, 0), (0, 0)
    if padding == "SAME":
        totals = [
            max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, k, s, d in zip(size, kernel_size, strides, dilation, strict=True)
        ]
        first, second = ((t // 2, t - t // 2) for t in totals)
        return first, second
    if isinstance(padding, str) or len(padding) != 2 or any(len(p) != 2 for p in padding):
        raise ValueError(f"padding must be 'SAME', 'VALID' or ((before, after), (before, after)), not {padding!r}")
    (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))


def _pair(value: int | Sequence[int], name: str) -> Pair:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"{name} must be a positive integer or two, not {value!r}")
    return pair


def _check(x: jax.Array, kernel: jax.Array, groups: int) -> None:
    if x.ndim < 3 or kernel.ndim != 4:
        raise ValueError(f"conv takes [*b, h, w, c] and [kh, kw, c // groups, n], not {x.shape} and {kernel.shape}")
    c, n = x.shape[-1], kernel.shape[-1]
    if groups < 1 or c != kernel.shape[2] * groups or n % groups:
        raise ValueError(f"image has {c} channels, kernel {kernel.shape}, groups {groups}: they do not fit")
    if x.dtype != kernel.dtype:
        raise ValueError(f"image is {x.dtype}, kernel is {kernel.dtype}: cast one of them")
    if 0 in x.shape[-3:]:
        raise ValueError(f"image of shape {x.shape} has no pixels")


def _without_blind_taps(
    kernel: jax.Array, size: Pair, strides: Pair, pads: Pads, dilation: Pair
) -> tuple[jax.Array, Pads]:
    """Cuts off kernel rows and columns that see nothing but padding: rate 18 on a 14 px map is a 1x1 convolution."""
    kept: list[slice] = []
    new_pads: list[Pair] = []
    for k, n, s, (lo, hi), d in zip(kernel.shape[:2], size, strides, pads, dilation, strict=True):
        out = (n + lo + hi - (k - 1) * d - 1) // s + 1
        seeing = [i for i in range(k) if i * d - lo < n and i * d - lo + s * (out - 1) >= 0] or [k // 2]
        first, last = seeing[0], seeing[-1]
        lo = lo - first * d
        kept.append(slice(first, last + 1))
        new_pads.append((lo, (out - 1) * s + (last - first) * d + 1 - n - lo))
    if all(kept[a] == slice(0, kernel.shape[a]) for a in (0, 1)):
        return kernel, pads
    return kernel[kept[0], kept[1]], (new_pads[0], new_pads[1])


def _pointwise(x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, precision: Any) -> jax.Array:
    if pads != ((0, 0), (0, 0)):
        x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)))
    if strides != (1, 1):
        # The barrier keeps jaxlib 0.11.2's GPU compiler from fusing the slice into the product, which ends the process
        # by a failed check for images of an odd size (triton_tiling_propagation.cc). CPUs fuse as without it.
        x = lax.optimization_barrier(lax.slice(x, (0, 0, 0, 0), x.shape, (1, *strides, 1)))
    return pointwise(x, kernel[0, 0], precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _depthwise(x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, dilation: Pair, precision: Any) -> jax.Array:
    return _depthwise_forward(x, kernel, strides, pads, dilation, precision)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5), inline=True)
def _depthwise_forward(
    x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, dilation: Pair, precision: Any
) -> jax.Array:
    stock = functools.partial(
        stock_conv, strides=strides, pads=pads, dilation=dilation, groups=x.shape[-1], precision=precision
    )
    shifted = functools.partial(depthwise.depthwise_forward, strides=strides, pads=pads, dilation=dilation)
    on_gpus = {"cuda": functools.partial(shifted, apart=False)} if max(dilation) > 1 else {}
    return lax.platform_dependent(x, kernel, cpu=shifted, default=stock, **on_gpus)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6), inline=True)
def _depthwise_backward(
    x: jax.Array, kernel: jax.Array, g: jax.Array, strides: Pair, pads: Pads, dilation: Pair, precision: Any
) -> tuple[jax.Array, jax.Array]:
    def stock(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return stock_conv(x, kernel, strides, pads, dilation, x.shape[-1], precision)

        dx, dk = jax.vjp(forward, x, kernel)[1](g)
        return dx, dk

    window: dict[str, Any] = {"strides": strides, "pads": pads, "dilation": dilation}

    def shifted(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernel_size = (kernel.shape[0], kernel.shape[1])
        dk = depthwise.depthwise_kernel_gradient(x, g, kernel_size=kernel_size, **window)
        dx = depthwise.depthwise_input_gradient(g, kernel, size=(x.shape[1], x.shape[2]), **window)
        return dx, dk.astype(kernel.dtype)

    def by_sums(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernel_size = (kernel.shape[0], kernel.shape[1])
        dk = depthwise.depthwise_kernel_gradient_by_sums(x, g, kernel_size=kernel_size, **window)
        dx = depthwise.depthwise_input_gradient(g, kernel, size=(x.shape[1], x.shape[2]), apart=False, **window)
        return dx, dk.astype(kernel.dtype)

    on_gpus = {"cuda": by_sums} if max(dilation) > 1 else {}
    return lax.platform_dependent(x, kernel, g, cpu=shifted, default=stock, **on_gpus)


def _depthwise_vjp_forward(
    x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, dilation: Pair, precision: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _depthwise_forward(x, kernel, strides, pads, dilation, precision), (x, kernel)


def _depthwise_vjp_backward(
    strides: Pair, pads: Pads, dilation: Pair, precision: Any, residuals: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _depthwise_backward(*residuals, g, strides, pads, dilation, precision)


_depthwise.defvjp(_depthwise_vjp_forward, _depthwise_vjp_backward)
