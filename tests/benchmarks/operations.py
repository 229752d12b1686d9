"""`python -m tests.benchmarks.operations RESULT.json`: operations, XLA's own and PyTorch's beside this library's.

Forward, and forward with all gradients, alternating in one process with two threads each. Wall and CPU time (of all
threads) are medians; on a busy machine the CPU time is the one to look at. PyTorch's threads must not spin while they
wait: OMP_WAIT_POLICY=PASSIVE is set before it is loaded.
"""

import argparse
import datetime
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax

from jaxseg.layers.norm import batch_moments
from jaxseg.ops.conv import conv
from jaxseg.ops.pooling import average_pool, max_pool
from jaxseg.ops.resize import resize
from jaxseg.ops.transposed import conv_transpose

F = torch.nn.functional
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def convolution(shape, outputs, groups, stride=1, rate=1):
    """x, kernel and the three of a 3x3 convolution whose padding keeps the size; PyTorch's kernel is transposed."""
    pads = ((rate, rate), (rate, rate))
    ours = functools.partial(conv, strides=stride, padding=pads, dilation=rate, groups=groups)

    def stock(x, k):
        options = {"rhs_dilation": (rate, rate), "dimension_numbers": DIMENSIONS, "feature_group_count": groups}
        return lax.conv_general_dilated(x, k, (stride, stride), pads, **options)

    def theirs(x, k):
        return F.conv2d(x, k.permute(3, 2, 0, 1), stride=stride, padding=rate, dilation=rate, groups=groups)

    return (shape, (3, 3, shape[-1] // groups, outputs)), stock, ours, theirs


def transposed(shape, outputs, k, stride):
    """As `convolution`; the kernel is `[k, k, n, c]`."""

    def stock(x, w):
        edges = ((k - 1, k - 1), (k - 1, k - 1))
        flipped = w[::-1, ::-1].transpose(0, 1, 3, 2)
        dilated = {"lhs_dilation": (stride, stride), "dimension_numbers": DIMENSIONS}
        return lax.conv_general_dilated(x, flipped, (1, 1), edges, **dilated)

    def theirs(x, w):
        return F.conv_transpose2d(x, w.permute(3, 2, 0, 1), stride=stride)

    return (shape, (k, k, outputs, shape[-1])), stock, functools.partial(conv_transpose, strides=stride), theirs


def pooling(shape, k, stride, pad, mean=False):
    """Max or mean of windows."""
    sides, window, strides = ((0, 0), (pad, pad), (pad, pad), (0, 0)), (1, k, k, 1), (1, stride, stride, 1)

    def stock(x):
        if mean:
            return lax.reduce_window(x, 0.0, lax.add, window, strides, sides) / k**2
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, sides)

    ours = functools.partial(average_pool if mean else max_pool, window=k, strides=stride, padding=pad)
    theirs = functools.partial(F.avg_pool2d if mean else F.max_pool2d, kernel_size=k, stride=stride, padding=pad)
    return (shape,), stock, ours, theirs


def resizing(shape, size):
    """Bilinear with half-pixel centres."""

    def stock(x):
        return jax.image.resize(x, (shape[0], *size, shape[-1]), "linear", antialias=False)

    theirs = functools.partial(F.interpolate, size=size, mode="bilinear", align_corners=False)
    return (shape,), stock, functools.partial(resize, size=size, alignment="half_pixel"), theirs


def normalising(shape):
    """Batch norm in training and ReLU; stock: mean, then the mean square of what is left."""

    def finish(x, scale, mean, var):
        return jnp.maximum((x - mean) * (scale * lax.rsqrt(var + 1e-5)), 0)

    def stock(x, scale):
        return finish(x, scale, jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2)))

    def ours(x, scale):
        return finish(x, scale, *batch_moments(x, shift=jnp.zeros_like(scale)))

    def theirs(x, scale):
        return torch.relu(F.batch_norm(x, None, None, scale, None, training=True))

    return (shape, shape[-1:]), stock, ours, theirs


CASES = {
    "grouped 3x3, 32 groups, 2x32x32x256": lambda: convolution((2, 32, 32, 256), 256, 32),
    "depthwise 3x3, 2x64x64x256": lambda: convolution((2, 64, 64, 256), 256, 256),
    "depthwise 3x3, stride 2, 4x64x64x144": lambda: convolution((4, 64, 64, 144), 144, 144, 2),
    "depthwise 3x3, rate 2, 4x16x16x960": lambda: convolution((4, 16, 16, 960), 960, 960, 1, 2),
    "transposed 3x3, stride 2, 3x56x56x48 to 48": lambda: transposed((3, 56, 56, 48), 48, 3, 2),
    "transposed 2x2, stride 2, 2x56x56x128 to 64": lambda: transposed((2, 56, 56, 128), 64, 2, 2),
    "max pool 2x2, 3x112x112x96": lambda: pooling((3, 112, 112, 96), 2, 2, 0),
    "max pool 3x3, stride 2, 2x128x128x64": lambda: pooling((2, 128, 128, 64), 3, 2, 1),
    "average pool 2x2, 2x56x56x128": lambda: pooling((2, 56, 56, 128), 2, 2, 0, mean=True),
    "resize 4x16x16x256 to 64x64": lambda: resizing((4, 16, 16, 256), (64, 64)),
    "resize 4x64x64x11 to 256x256": lambda: resizing((4, 64, 64, 11), (256, 256)),
    "batch norm and ReLU, 4x64x64x144": lambda: normalising((4, 64, 64, 144)),
    "batch norm and ReLU, 3x112x112x144": lambda: normalising((3, 112, 112, 144)),
}


def channels_first(array):
    """PyTorch's view of an image, channels_last in memory; other arrays as they are (kernels keep their axes)."""
    tensor = torch.from_numpy(np.array(array))
    return tensor.permute(0, 3, 1, 2) if array.ndim == 4 else tensor


def works_of(case, gradient):
    """name -> a call that runs one turn, after the results were seen to be equal."""
    shapes, stock, ours, theirs = case
    keys = jax.random.split(jax.random.key(0), len(shapes) + 1)
    arrays = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=False)]
    g = jax.random.normal(keys[-1], jax.eval_shape(ours, *arrays).shape)
    image, *rest = (torch.from_numpy(np.array(a)).requires_grad_(gradient) for a in arrays)
    torch_g = channels_first(g)

    def compiled(f):
        def both(g, *arrays):
            y, back = jax.vjp(f, *arrays)
            return y, back(g)

        program = jax.jit(both if gradient else lambda g, *arrays: f(*arrays)).lower(g, *arrays).compile()
        return lambda: jax.block_until_ready(program(g, *arrays))

    def peer():
        y = theirs(image.permute(0, 3, 1, 2), *rest)
        return (y, torch.autograd.grad(y, (image, *rest), torch_g)) if gradient else y

    works = {"stock": compiled(stock), "jaxseg": compiled(ours), "torch": peer}
    values = {name: jax.tree.leaves(work()) for name, work in works.items()}
    for i, (a, b, c) in enumerate(zip(*values.values(), strict=True)):
        # Gradients have the axes that their arrays came with: channels last.
        c = np.moveaxis(c.detach().numpy(), 1, -1) if i == 0 else c.numpy()
        scale = float(jnp.max(jnp.abs(b)))
        np.testing.assert_allclose(b, a, atol=1e-4 * scale)
        np.testing.assert_allclose(b, c, atol=1e-4 * scale)
    return works


def measure(works, repeats):
    """name -> {"wall_ms", "cpu_ms"}, medians; XLA's own takes fewer turns where it is slow."""
    found = {name: ([], []) for name in works}
    for turn in range(repeats):
        for name, work in works.items():
            if name == "stock" and turn >= 2 and statistics.median(found[name][1]) > 0.1:
                continue
            began, cpu = time.perf_counter(), time.process_time()
            work()
            found[name][1].append(time.process_time() - cpu)
            found[name][0].append(time.perf_counter() - began)
    return {
        name: {"wall_ms": 1e3 * statistics.median(wall), "cpu_ms": 1e3 * statistics.median(cpu)}
        for name, (wall, cpu) in found.items()
    }


def main():
    """Measures every case, prints a line each and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=pathlib.Path)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    cases = {}
    for name, make in CASES.items():
        for part, gradient in (("forward", False), ("forward and gradients", True)):
            if arguments.only not in name:
                continue
            times = measure(works_of(make(), gradient), arguments.repeats)
            mine = times["jaxseg"]
            ratios = {
                f"{unit}_of_{peer}": mine[f"{unit}_ms"] / times[peer][f"{unit}_ms"]
                for peer in ("stock", "torch")
                for unit in ("cpu", "wall")
            }
            cases.setdefault(name, {})[part] = times | {"ratios": ratios}
            line = " | ".join(f"{k} {v['cpu_ms']:8.2f}" for k, v in times.items())
            print(f"{name:44} {part:22} {line} | of torch {ratios['cpu_of_torch']:.2f}", flush=True)
    record = {
        "command": f"python -m tests.benchmarks.operations {arguments.result.name} --repeats={arguments.repeats}",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {p: importlib.metadata.version(p) for p in ("jax", "jaxlib", "numpy", "torch")},
        "cases": cases,
    }
    arguments.result.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
