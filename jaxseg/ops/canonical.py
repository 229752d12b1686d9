"""XLA's convolution with gradients that a CPU runs as fast inside of a loop as outside.

XLA's CPU has a fast convolution for images `[b, h, w, c]` and kernels `[kh, kw, c, n]` alone, and rearranges others, as
the gradients are that JAX derives, into these; but only in a program's main part. In a loop, such as the one over the
parts of an accumulated batch (`train/gradients.py`), they stay as they are and run without vectors. Here the gradients
are written in that form. Two cores, float32, jaxlib 0.10.2, milliseconds, image's / kernel's gradient by `ops.conv`,
which takes this form for some of them (experiments/results/loops_cpu2_2026-11-23.json):

| input, channels, kernel           | outside of a loop | inside, as JAX derives it | inside, as here |
|-----------------------------------|-------------------|---------------------------|-----------------|
| 2x128x128, 16 -> 16, 3x3          | 2.1 / 4.3         | 34 / 94                   | 2.7 / 3.8       |
| 1x22x22, 64 -> 64, 3x3            | 0.6 / 0.8         | 1.4 / 17                  | 0.6 / 0.9       |
| 2x64x64, 64 -> 128, 3x3, stride 2 | 3.4 / 7.6         | 9.7 / 269                 | 3.9 / 7.5       |
| 2x128x128, 3 -> 64, 7x7, stride 2 | 5.7 / 7.0         | 9.1 / 81                  | 5.6 / 6.8       |
| 2x32x32, 64 -> 64, 7x7            | 12 / 17           | 48 / 385                  | 13 / 26         |
| 2x32x32, 256 in 32 groups, 3x3    | 6.8 / 9.0         | 16 / 256                  | 7.5 / 11        |
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from jaxseg.ops.narrow import Narrow, columns_of_gradient, kernel_gradient_of_columns, narrow, narrow_conv
from jaxseg.ops.on_gpus import ways_on_gpus
from jaxseg.ops.stock_conv import Pads, Pair, stock_conv
from jaxseg.ops.window import gradient_pads


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def canonical_conv(
    x: jax.Array,
    kernel: jax.Array,
    strides: Pair = (1, 1),
    pads: Pads = ((0, 0), (0, 0)),
    dilation: Pair = (1, 1),
    precision: Any = None,
) -> jax.Array:
    """`stock_conv` of one group, on a CPU as `ops/narrow.py` has it where there are few channels."""
    return _values(x, kernel, strides, pads, dilation, precision)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5), inline=True)
def _values(x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, dilation: Pair, precision: Any) -> jax.Array:
    options: dict[str, Any] = {"strides": strides, "pads": pads, "dilation": dilation, "precision": precision}
    stock: Callable[..., jax.Array] = functools.partial(stock_conv, **options)
    ways = ways_on_gpus(x, kernel, **options).values
    c, n = kernel.shape[2:]
    (b, rows, columns, _) = jax.eval_shape(stock, x, kernel).shape
    way = narrow(c, n, dilation[1], b * rows * columns)
    if way != Narrow():
        ways = {**ways, "cpu": functools.partial(narrow_conv, way=way, **options)}
    return lax.platform_dependent(x, kernel, default=stock, **ways) if ways else stock(x, kernel)


def _forward(
    x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, dilation: Pair, precision: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _values(x, kernel, strides, pads, dilation, precision), (x, kernel)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), inline=True)
def _backward(
    strides: Pair,
    pads: Pads,
    dilation: Pair,
    precision: Any,
    residuals: tuple[jax.Array, jax.Array],
    g: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    options: dict[str, Any] = {"strides": strides, "pads": pads, "dilation": dilation, "precision": precision}

    def of(cpu: Callable[..., jax.Array], default: Callable[..., jax.Array], **more: Any) -> jax.Array:
        ours, theirs = functools.partial(cpu, **options), functools.partial(default, **options)
        return lax.platform_dependent(*residuals, g, cpu=ours, default=theirs, **more)

    on_gpus = ways_on_gpus(*residuals, **options)
    return (
        of(canonical_input_gradient, stock_input_gradient, **on_gpus.image),
        of(canonical_kernel_gradient, stock_kernel_gradient, **on_gpus.kernel),
    )


canonical_conv.defvjp(_forward, _backward)


def stock_input_gradient(x: jax.Array, kernel: jax.Array, g: jax.Array, **options: Any) -> jax.Array:
    """The gradient of x as JAX derives it; options as `stock_conv`."""
    (gradient,) = jax.vjp(lambda x: stock_conv(x, kernel, **options), x)[1](g)
    return gradient


def stock_kernel_gradient(x: jax.Array, kernel: jax.Array, g: jax.Array, **options: Any) -> jax.Array:
    """The gradient of the kernel as JAX derives it; options as `stock_conv`."""
    (gradient,) = jax.vjp(lambda kernel: stock_conv(x, kernel, **options), kernel)[1](g)
    return gradient


def canonical_input_gradient(
    x: jax.Array,
    kernel: jax.Array,
    g: jax.Array,
    *,
    strides: Pair = (1, 1),
    pads: Pads,
    dilation: Pair,
    precision: Any = None,
) -> jax.Array:
    """The gradient of x `[b, h, w, c]`: the cotangent, its numbers a stride apart, and the kernel turned round.

    `dx[i] = sum_j g[(i + lo - d j) / s] kernel[j]` where s divides.
    """
    spread = [(o - 1) * s + 1 for o, s in zip(g.shape[1:3], strides, strict=True)]
    return lax.conv_general_dilated(
        g,
        lax.rev(kernel, (0, 1)).swapaxes(2, 3),
        (1, 1),
        gradient_pads(x.shape[1:3], spread, kernel.shape[:2], pads, dilation),
        lhs_dilation=strides,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def canonical_kernel_gradient(
    x: jax.Array,
    kernel: jax.Array,
    g: jax.Array,
    *,
    strides: Pair = (1, 1),
    pads: Pads,
    dilation: Pair,
    precision: Any = None,
) -> jax.Array:
    """The gradient of the kernel `[kh, kw, c, n]`: channels as images, images as channels, rate as stride.

    `dkernel[j, m, n] = sum_bo x[b, s o + d j - lo, m] g[b, o, n]`, with few channels out by columns abreast
    (`ops/narrow.py`).
    """
    columns = columns_of_gradient(g.shape, dilation[1])
    if columns > 1:
        options: dict[str, Any] = {"strides": strides, "pads": pads, "dilation": dilation, "precision": precision}
        return kernel_gradient_of_columns(_kernel_gradient, x, kernel, g, columns=columns, **options)
    return _kernel_gradient(x, kernel, g, strides=strides, pads=pads, dilation=dilation, precision=precision)


def _kernel_gradient(
    x: jax.Array, kernel: jax.Array, g: jax.Array, *, strides: Pair, pads: Pads, dilation: Pair, precision: Any
) -> jax.Array:
    axes = zip(x.shape[1:3], g.shape[1:3], kernel.shape[:2], strides, pads, dilation, strict=True)
    rows, columns = ((lo, (k - 1) * d + (o - 1) * s + 1 - n - lo) for n, o, k, s, (lo, _), d in axes)
    gradient = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        g.transpose(1, 2, 0, 3),
        dilation,
        (rows, columns),
        rhs_dilation=strides,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )
    return gradient.transpose(1, 2, 0, 3)
