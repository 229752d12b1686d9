"""`python -m tests.benchmarks.gpu RESULT.json`: ways of one operation on a GPU, those that `jaxseg.ops` chooses among.

Atrous, depthwise, 1x1 and strided convolutions, channels that are no multiple of eight, a convolution of an image of
twice the size, resizing, the norm of a dense block; values and gradients. Each is compiled alone, in bfloat16, logits
in float32; `--calls` calls follow each other and are awaited once, and the best of `--repeats` such rows counts.
`--shrink=N` divides sides and channels, to try it elsewhere.
"""

import argparse
import datetime
import functools
import json
import pathlib
import shlex
import sys
import time

import jax
import jax.numpy as jnp

from jaxseg.layers import norm
from jaxseg.ops import aligned, depthwise, phases, pixel_blocks, pointwise, resize, twice
from jaxseg.ops.canonical import stock_input_gradient, stock_kernel_gradient
from jaxseg.ops.stock_conv import stock_conv
from jaxseg.ops.taps import kernel_gradient_by_taps
from tests.benchmarks.losses_and_metrics import versions

COMMAND = ("python", "-m", "tests.benchmarks.gpu")
# images, side, channels in, out, rate
ATROUS = (
    (16, 65, 256, 256, 2),
    (16, 65, 512, 512, 4),
    (16, 65, 2048, 256, 12),
    (16, 65, 2048, 256, 24),
    (16, 65, 2048, 256, 36),
)
# images, side, channels, stride, rate
DEPTHWISE = ((16, 129, 144, 1, 1), (16, 257, 96, 2, 1), (16, 33, 960, 1, 1), (16, 33, 960, 1, 2), (16, 33, 320, 1, 12))
# images, side, channels in, out
POINTWISE = ((16, 65, 512, 2048), (16, 513, 96, 96), (16, 33, 960, 160), (16, 129, 256, 64))
# images, side, channels in, out, kernel, stride
STRIDED = ((16, 513, 3, 64, 7, 2),)
# images, side, channels in, out
CHANNELS = ((16, 513, 180, 12), (16, 513, 168, 12), (16, 513, 184, 16), (16, 513, 192, 32))
# images, side of the small image, channels in, out
TWICE = ((16, 256, 32, 16),)
# images, side, new side, channels, dtype
RESIZE = ((16, 65, 513, 21, "float32"), (8, 128, 1024, 21, "float32"), (16, 33, 129, 256, "bfloat16"))
# images, side, channels of the pieces
STACK = (16, 513, 144)


def normal(seed, *shape, dtype="bfloat16"):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def atrous(less, b, side, c, n, rate):
    """All three parts of a 3x3 convolution."""
    x, g = normal(0, b, less(side), less(side), less(c)), normal(1, b, less(side), less(side), less(n))
    kernel = jnp.zeros((3, 3, less(c), less(n)), jnp.bfloat16)
    options = {"pads": ((rate, rate), (rate, rate)), "dilation": (rate, rate), "precision": None}
    ways = {"xla": stock_kernel_gradient, "phases": phases.kernel_gradient_by_phases, "taps": kernel_gradient_by_taps}
    by_phases = {"dilation": (rate, rate)}
    return {f"kernel gradient, {name}": (functools.partial(f, **options), x, kernel, g) for name, f in ways.items()} | {
        "values, xla": (functools.partial(stock_conv, **options), x, kernel),
        "values, phases": (functools.partial(phases.conv_by_phases, **by_phases), x, kernel),
        "image's gradient, xla": (functools.partial(stock_input_gradient, **options), x, kernel, g),
        "image's gradient, phases": (functools.partial(phases.input_gradient_by_phases, **by_phases), x, kernel, g),
    }


def of_strided(less, b, side, c, n, k, stride):
    """Values and kernel gradient of a strided convolution of few channels."""
    side, pad = less(side), k // 2
    x, kernel = normal(0, b, side, side, c), normal(1, k, k, c, less(n))
    options = {"strides": (stride, stride), "pads": ((pad, pad), (pad, pad)), "precision": None}
    g = normal(2, *jax.eval_shape(functools.partial(stock_conv, **options), x, kernel).shape)
    values = {"xla": stock_conv, "eights": aligned.aligned_conv, "blocks": pixel_blocks.conv_of_blocks}
    gradients = {
        "xla": stock_kernel_gradient,
        "eights": aligned.aligned_kernel_gradient,
        "blocks": pixel_blocks.kernel_gradient_of_blocks,
    }
    found = {f"values, {name}": (functools.partial(f, **options), x, kernel) for name, f in values.items()}
    for name, f in gradients.items():
        found[f"kernel gradient, {name}"] = functools.partial(f, **options), x, kernel, g
    return found


def of_channels(less, b, side, c, n):
    """All three parts of a 3x3 convolution, as it is and with channels in eights."""
    side = less(side)
    x, kernel, g = normal(0, b, side, side, c), normal(1, 3, 3, c, n), normal(2, b, side, side, n)
    options = {"pads": ((1, 1), (1, 1)), "precision": None}
    ways = {
        "values, xla": (stock_conv, x, kernel),
        "values, eights": (aligned.aligned_conv, x, kernel),
        "image's gradient, xla": (stock_input_gradient, x, kernel, g),
        "image's gradient, eights": (aligned.aligned_input_gradient, x, kernel, g),
        "kernel gradient, xla": (stock_kernel_gradient, x, kernel, g),
        "kernel gradient, eights": (aligned.aligned_kernel_gradient, x, kernel, g),
    }
    return {name: (functools.partial(f, **options), *given) for name, (f, *given) in ways.items()}


def of_twice(less, b, side, c, n):
    """A 3x3 convolution of an image repeated to twice its size."""
    side = less(side)
    x, kernel, g = normal(0, b, side, side, c), normal(1, 3, 3, c, n), normal(2, b, 2 * side, 2 * side, n)
    repeated, sub_pixel = (functools.partial(way, beside=None) for way in (twice._plain, twice._by_four))
    return {
        "values, repeated": (repeated, x, kernel),
        "values, sub-pixel": (sub_pixel, x, kernel),
        "gradients, repeated": (lambda x, kernel, g: jax.vjp(repeated, x, kernel)[1](g), x, kernel, g),
        "gradients, sub-pixel": (lambda x, kernel, g: jax.vjp(sub_pixel, x, kernel)[1](g), x, kernel, g),
    }


def of_depthwise(less, b, side, c, stride, rate):
    """All three parts of a depthwise 3x3 convolution."""
    side, c = less(side), less(c)
    x, kernel = normal(0, b, side, side, c), normal(1, 3, 3, 1, c)
    window = {"strides": (stride,) * 2, "pads": ((rate, rate),) * 2, "dilation": (rate, rate)}
    stock = functools.partial(stock_conv, groups=c, **window)
    g = normal(2, *jax.eval_shape(stock, x, kernel).shape)
    of_image = functools.partial(depthwise.depthwise_input_gradient, size=(side, side), **window)
    sums = functools.partial(depthwise.depthwise_kernel_gradient_by_sums, kernel_size=(3, 3), **window)
    return {
        "values, xla": (stock, x, kernel),
        "values, shifted": (functools.partial(depthwise.depthwise_forward, apart=False, **window), x, kernel),
        "image's gradient, xla": (lambda x, k, g: jax.vjp(lambda x: stock(x, k), x)[1](g), x, kernel, g),
        "image's gradient, shifted": (functools.partial(of_image, apart=False), g, kernel),
        "kernel gradient, xla": (lambda x, k, g: jax.vjp(lambda k: stock(x, k), k)[1](g), x, kernel, g),
        "kernel gradient, sums": (sums, x, g),
    }


def of_pointwise(less, b, side, c, n):
    """Kernel gradients of a 1x1 convolution, and its values of a rectified image with a float32 matrix."""

    def rectified(product):
        return lambda x, matrix: product(jax.nn.relu(x), matrix.astype(x.dtype), 0, None)

    matrix = normal(2, less(c), less(n), dtype="float32")
    x, g = normal(0, b, less(side), less(side), less(c)), normal(1, b, less(side), less(side), less(n))
    return {
        "kernel gradient, product": (pointwise._matrix_gradient, x, g),
        "kernel gradient, convolution": (pointwise._matrix_gradient_cuda, x, g),
        "values, fused": (rectified(pointwise._product), x, matrix),
        "values, apart": (rectified(pointwise._product_here), x, matrix),
    }


def of_resize(less, b, side, size, c, dtype):
    """Bilinear enlargement as `ops.resize` has it on this platform, and as products, forward and back."""
    side, size = less(side), less(size)
    x, g = normal(0, b, side, side, c, dtype=dtype), normal(1, b, size, size, c, dtype=dtype)
    matrix = resize._matrix(side, size, "half_pixel", "bilinear")

    def ours(x):
        return resize.resize(x, (size, size), alignment="half_pixel")

    def products(x, matrix=matrix):
        rows = jnp.einsum("oh,bhwc->bowc", matrix, x.astype(jnp.float32), precision="highest")
        return jnp.einsum("pw,bowc->bopc", matrix, rows, precision="highest").astype(x.dtype)

    return {
        "values, products": (products, x),
        "values, jaxseg": (ours, x),
        "gradient, products": (lambda g: products(g, matrix.T), g),
        "gradient, jaxseg": (lambda x, g: jax.vjp(ours, x)[1](g), x, g),
    }


def of_stack(less, b, side, channels):
    """A dense block's rectified norm and its gradient, of the first channels of an array of all."""
    side = less(side)
    array, g = normal(0, b, side, side, channels + 12), normal(3, b, side, side, channels)
    factor, shift = (normal(i, channels, dtype="float32") for i in (50, 90))

    def values(array, factor, shift):
        return norm.rectified(array[..., :channels], factor, shift, jnp.bfloat16)

    def gradient(array, factor, shift, g):
        return norm.rectified_gradient(array[..., :channels], factor, shift, g, jnp.bfloat16)

    return {"gradient": (gradient, array, factor, shift, g), "values": (values, array, factor, shift)}


GROUPS = {
    "atrous convolution": (atrous, ATROUS),
    "depthwise convolution": (of_depthwise, DEPTHWISE),
    "1x1 convolution": (of_pointwise, POINTWISE),
    "strided convolution": (of_strided, STRIDED),
    "channels": (of_channels, CHANNELS),
    "convolution of twice the size": (of_twice, TWICE),
    "resize": (of_resize, RESIZE),
    "norm of a stack": (of_stack, (STACK,)),
}


def milliseconds(function, arguments, calls, repeats):
    """Of one call: the best row of `calls`."""
    jitted = jax.jit(function)
    jax.block_until_ready(jitted(*arguments))
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(calls):
            result = jitted(*arguments)
        jax.block_until_ready(result)
        best = min(best, (time.perf_counter() - began) / calls)
    return 1e3 * best


def main():
    """Measures all groups, or those that are named; the result is written after each shape."""
    parser = argparse.ArgumentParser(prog=shlex.join(COMMAND), description=__doc__)
    parser.add_argument("result", type=pathlib.Path)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--shrink", type=int, default=1)
    options = parser.parse_args()
    result = {
        "command": shlex.join([*COMMAND, options.result.name, *sys.argv[2:]]),
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
        "milliseconds": {},
    }
    for group in options.groups:
        make, shapes = GROUPS[group]
        for shape in shapes:
            label = f"{group} {', '.join(map(str, shape))}"
            ways = make(lambda n: max(n // options.shrink, 1), *shape)
            found = {name: milliseconds(f, given, options.calls, options.repeats) for name, (f, *given) in ways.items()}
            result["milliseconds"][label] = found
            print(label, {name: f"{value:.3f}" for name, value in found.items()}, flush=True)
            options.result.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
