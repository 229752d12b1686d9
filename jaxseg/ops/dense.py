"""Dense convolution at stride 1 with a gradient of its own: on a CPU each part goes its way (`ops/lowering.py`).

So does it on NVIDIA GPUs (`ops/on_gpus.py`).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from jaxseg.ops import taps, thin, winograd
from jaxseg.ops.beside import Beside, convolve_beside
from jaxseg.ops.canonical import (
    canonical_input_gradient,
    canonical_kernel_gradient,
    stock_input_gradient,
    stock_kernel_gradient,
)
from jaxseg.ops.lowering import Lowering
from jaxseg.ops.on_gpus import ways_on_gpus
from jaxseg.ops.stock_conv import Pads, Pair, stock_conv
from jaxseg.ops.window import gradient_pads


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def convolve(
    x: jax.Array, kernel: jax.Array, pads: Pads, dilation: Pair, chosen: Lowering, precision: Any = None
) -> jax.Array:
    """Stride-1 convolution; on a CPU each of its three parts as chosen, elsewhere XLA's own.

    `y[o, p, n] = sum_ijm kernel[i, j, m, n] x[o + d i - lo, p + d j - lo, m]`.

    Args:
      x: `[b, h, w, c]`.
      kernel: `[kh, kw, c, n]` of x's dtype.
      pads: (before, after) for rows and for columns.
      dilation: rows, columns.
      chosen: see `lowering`; by taps only where `useful_share` is above 0, Winograd's way only for three kernel rows
        and no negative padding.
      precision: as `jax.lax.dot_general`.

    Returns:
      `[b, h', w', n]` of x's dtype, summed in float32.
    """
    return _forward(x, kernel, pads, dilation, chosen, precision)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5), inline=True)
def _forward(
    x: jax.Array, kernel: jax.Array, pads: Pads, dilation: Pair, chosen: Lowering, precision: Any
) -> jax.Array:
    options: dict[str, Any] = {"pads": pads, "dilation": dilation, "precision": precision}
    stock: Callable[..., jax.Array] = functools.partial(stock_conv, **options)
    on_gpus = ways_on_gpus(x, kernel, (1, 1), **options).values
    if chosen.values == "xla":
        return lax.platform_dependent(x, kernel, default=stock, **on_gpus) if on_gpus else stock(x, kernel)
    ways: dict[str, Callable[..., jax.Array]] = {
        "taps": functools.partial(taps.forward_by_taps, **options),
        "winograd": functools.partial(winograd.winograd_forward, **options),
        "beside": functools.partial(convolve_beside, cut=chosen.beside, **options),
        "shifts": functools.partial(thin.forward_by_shifts, **options),
    }
    return lax.platform_dependent(x, kernel, cpu=ways[chosen.values], default=stock, **on_gpus)


def _vjp_forward(
    x: jax.Array, kernel: jax.Array, pads: Pads, dilation: Pair, chosen: Lowering, precision: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _forward(x, kernel, pads, dilation, chosen, precision), (x, kernel)


def _input_gradient_beside(
    x: jax.Array, kernel: jax.Array, g: jax.Array, *, pads: Pads, dilation: Pair, cut: Beside, precision: Any
) -> jax.Array:
    (h, w), (rows, columns), (kh, kw) = x.shape[1:3], g.shape[1:3], kernel.shape[:2]
    back = gradient_pads((h, w), (rows, columns), (kh, kw), pads, dilation)
    turned = lax.rev(kernel, (0, 1)).swapaxes(2, 3)
    return convolve_beside(g, turned, pads=back, dilation=dilation, cut=cut, precision=precision)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), inline=True)
def _vjp_backward(
    pads: Pads,
    dilation: Pair,
    chosen: Lowering,
    precision: Any,
    residuals: tuple[jax.Array, jax.Array],
    g: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    options: dict[str, Any] = {"pads": pads, "dilation": dilation, "precision": precision}
    of_image: dict[str, Callable[..., jax.Array]] = {
        "taps": functools.partial(taps.input_gradient_by_taps, **options),
        "winograd": functools.partial(winograd.winograd_input_gradient, **options),
        "beside": functools.partial(_input_gradient_beside, cut=chosen.image_beside, **options),
        "xla": functools.partial(canonical_input_gradient, **options),
    }
    of_kernel: dict[str, Callable[..., jax.Array]] = {
        "taps": functools.partial(taps.kernel_gradient_by_taps, **options),
        "winograd": functools.partial(winograd.winograd_kernel_gradient, **options),
        "rows": functools.partial(thin.kernel_gradient_by_rows, **options),
        "shifts": functools.partial(thin.kernel_gradient_by_shifts, **options),
        "xla": functools.partial(canonical_kernel_gradient, **options),
    }
    on_gpus = ways_on_gpus(*residuals, (1, 1), **options)
    return (
        lax.platform_dependent(
            *residuals,
            g,
            cpu=of_image[chosen.image],
            default=functools.partial(stock_input_gradient, **options),
            **on_gpus.image,
        ),
        lax.platform_dependent(
            *residuals,
            g,
            cpu=of_kernel[chosen.kernel],
            default=functools.partial(stock_kernel_gradient, **options),
            **on_gpus.kernel,
        ),
    )


convolve.defvjp(_vjp_forward, _vjp_backward)
