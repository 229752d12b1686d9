"""`python -m tests.benchmarks.loops RESULT.json`: gradients of convolutions outside and inside of a loop.

Three images' gradients (of the image, of the kernel) in one program, after each other and by `lax.scan`; inside of the
loop also as JAX derives them from XLA's convolution. In turn; medians of wall time for one image's.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import shlex
import sys

import jax
import jax.numpy as jnp

from jaxseg.ops.conv import conv, explicit_padding
from jaxseg.ops.stock_conv import stock_conv
from tests.benchmarks.convolutions import alternate
from tests.benchmarks.losses_and_metrics import versions

COMMAND = ("python", "-m", "tests.benchmarks.loops")
TURNS = 3
# image, kernel, stride, groups
SHAPES = (
    ((2, 128, 128, 16), (3, 3, 16, 16), 1, 1),
    ((1, 22, 22, 64), (3, 3, 64, 64), 1, 1),
    ((2, 64, 64, 64), (3, 3, 64, 128), 2, 1),
    ((2, 128, 128, 3), (7, 7, 3, 64), 2, 1),
    ((2, 32, 32, 64), (7, 7, 64, 64), 1, 1),
    ((2, 32, 32, 256), (3, 3, 8, 256), 1, 32),
)


def programs(image, kernel, stride, groups):
    """name -> what runs its compiled program."""
    keys = jax.random.split(jax.random.key(0), 2)
    x, k = jax.random.normal(keys[0], (TURNS, *image)), jax.random.normal(keys[1], kernel)
    pads = explicit_padding("SAME", size=image[1:3], kernel_size=kernel[:2], strides=(stride, stride), dilation=(1, 1))
    ways = {
        "jaxseg": lambda x, k: conv(x, k, strides=stride, groups=groups),
        "derived": lambda x, k: stock_conv(x, k, (stride, stride), pads, groups=groups),
    }
    g = jax.random.normal(jax.random.key(1), jax.eval_shape(ways["jaxseg"], x[0], k).shape)

    def gradient(way, argument, x, k, g):
        function = ways[way]
        if argument == "image":
            return jax.vjp(lambda x: function(x, k), x)[1](g)[0]
        return jax.vjp(lambda k: function(x, k), k)[1](g)[0]

    def outside(way, argument):
        return lambda x, k, g: [gradient(way, argument, x[i], k, g * (i + 1)) for i in range(TURNS)]

    def inside(way, argument):
        def turn(factor, x, k, g):
            return factor + 1, gradient(way, argument, x, k, g * factor)

        return lambda x, k, g: jax.lax.scan(lambda factor, x: turn(factor, x, k, g), jnp.ones(()), x)[1]

    functions = {}
    for argument in ("image", "kernel"):
        functions[f"{argument}, outside"] = outside("jaxseg", argument)
        functions[f"{argument}, inside, derived"] = inside("derived", argument)
        functions[f"{argument}, inside"] = inside("jaxseg", argument)
    compiled = {name: jax.jit(function).lower(x, k, g).compile() for name, function in functions.items()}
    return {name: lambda f=f: jax.block_until_ready(f(x, k, g)) for name, f in compiled.items()}


def main():
    """Measures all shapes; the result is written at the end."""
    parser = argparse.ArgumentParser(prog=shlex.join(COMMAND), description=__doc__)
    parser.add_argument("result", type=pathlib.Path)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    rows = []
    for image, kernel, stride, groups in SHAPES:
        found = alternate(programs(image, kernel, stride, groups), options.repeats)
        seconds = {name: wall / TURNS for name, (wall, _) in found.items()}
        rows.append({"image": image, "kernel": kernel, "stride": stride, "groups": groups, "seconds": seconds})
        print(image, kernel, stride, groups, {name: f"{1e3 * s:.2f} ms" for name, s in seconds.items()}, flush=True)
    result = {
        "command": shlex.join([*COMMAND, options.result.name, *sys.argv[2:]]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
        "convolutions": rows,
    }
    options.result.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
