"""`python -m tests.benchmarks.convolutions RESULT.json`: each convolution of two networks, by its three parts.

The dense convolutions that DeepLab v3 on ResNet-50 (2 x 256 x 256) and U-Net on ResNet-34 (4 x 256 x 256) run, and some
of other networks: forward, input gradient and kernel gradient; XLA's convolution, `jaxseg.ops.conv` and, where it is
installed, PyTorch. Each alone in its own program, in turn; medians of wall time and of processor time.
`--cores=1` gives both sides one core: on a busy machine processor times then compare the work alone.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import statistics
import sys
import time

COMMAND = ("python", "-m", "tests.benchmarks.convolutions")
PARTS = ("forward", "input_gradient", "kernel_gradient")
# batch, size, channels in, channels out, kernel (or its rows and columns), stride, rate, how often the network has it.
SHAPES = {
    "deeplab_v3_resnet50": (
        (2, 256, 3, 64, 7, 2, 1, 1),
        (2, 64, 64, 64, 3, 1, 1, 3),
        (2, 64, 64, 256, 1, 1, 1, 4),
        (2, 64, 128, 128, 3, 2, 1, 1),
        (2, 32, 128, 512, 1, 1, 1, 4),
        (2, 32, 128, 128, 3, 1, 1, 3),
        (2, 32, 256, 1024, 1, 1, 1, 6),
        (2, 32, 1024, 256, 1, 1, 1, 5),
        (2, 32, 256, 256, 3, 1, 2, 5),
        (2, 32, 2048, 512, 1, 1, 1, 2),
        (2, 32, 512, 512, 3, 1, 4, 2),
        (2, 32, 2048, 256, 3, 1, 12, 1),
        (2, 32, 2048, 256, 3, 1, 24, 1),
        (2, 32, 2048, 256, 3, 1, 36, 1),
    ),
    "unet_resnet34": (
        (4, 64, 64, 64, 3, 1, 1, 7),
        (4, 64, 64, 128, 3, 2, 1, 1),
        (4, 32, 128, 128, 3, 1, 1, 8),
        (4, 16, 256, 256, 3, 1, 1, 12),
        (4, 8, 512, 512, 3, 1, 1, 5),
        (4, 16, 768, 256, 3, 1, 1, 1),
        (4, 32, 384, 128, 3, 1, 1, 1),
        (4, 64, 192, 64, 3, 1, 1, 1),
        (4, 128, 128, 32, 3, 1, 1, 1),
        (4, 128, 32, 32, 3, 1, 1, 1),
        (4, 256, 32, 16, 3, 1, 1, 1),
        (4, 256, 16, 16, 3, 1, 1, 1),
        (4, 256, 16, 21, 3, 1, 1, 1),
    ),
    "others": (
        (1, 41, 512, 1024, 3, 1, 12, 1),
        (1, 41, 2048, 21, 3, 1, 24, 1),
        (2, 33, 320, 256, 3, 1, 6, 1),
    ),
    # Few channels on both sides (`ops/narrow.py`): first layers, gradients of classifiers, small networks.
    "narrow": (
        (4, 256, 3, 16, 3, 2, 1, 1),
        (4, 256, 3, 32, 3, 2, 1, 1),
        (4, 256, 3, 8, 3, 2, 1, 1),
        (2, 256, 3, 16, 7, 2, 1, 1),
        (4, 128, 16, 16, 3, 2, 1, 1),
        (4, 256, 3, 32, 3, 1, 1, 1),
        (4, 256, 3, 64, 3, 1, 1, 1),
        (4, 256, 8, 8, 3, 1, 1, 1),
        (4, 256, 8, 16, 3, 1, 1, 1),
        (4, 256, 16, 8, 3, 1, 1, 1),
        (4, 256, 21, 16, 3, 1, 1, 1),
        (2, 128, 16, 16, 3, 1, 2, 1),
        (2, 128, 11, 48, 3, 1, 1, 1),
    ),
    # Few channels out: FC-DenseNet's layers, GCN's and DeepLab's classifiers, maps of one channel.
    "thin": (
        (3, 224, 48, 12, 3, 1, 1, 1),
        (3, 224, 84, 12, 3, 1, 1, 1),
        (3, 224, 144, 12, 3, 1, 1, 1),
        (3, 224, 180, 12, 3, 1, 1, 1),
        (3, 112, 216, 12, 3, 1, 1, 1),
        (3, 56, 300, 12, 3, 1, 1, 1),
        (3, 28, 200, 12, 3, 1, 1, 1),
        (3, 28, 400, 12, 3, 1, 1, 1),
        (3, 112, 208, 16, 3, 1, 1, 1),
        (3, 28, 800, 16, 3, 1, 1, 1),
        (1, 32, 2048, 21, (15, 1), 1, 1, 1),
        (1, 32, 2048, 21, (1, 15), 1, 1, 1),
        (2, 64, 1024, 21, (7, 1), 1, 1, 1),
        (1, 41, 2048, 21, 3, 1, 6, 1),
        (1, 41, 2048, 21, 3, 1, 12, 1),
        (1, 256, 64, 1, 3, 1, 1, 1),
        (4, 64, 256, 1, 3, 1, 1, 1),
    ),
}


def alternate(works, repeats):
    """name -> (median seconds, median processor seconds); each is called twice before, and then in turn."""
    for work in [*works.values(), *works.values()]:
        work()
    wall, processor = ({name: [] for name in works} for _ in range(2))
    for _ in range(repeats):
        for name, work in works.items():
            began, used = time.perf_counter(), time.process_time()
            work()
            processor[name].append(time.process_time() - used)
            wall[name].append(time.perf_counter() - began)
    return {name: (statistics.median(wall[name]), statistics.median(processor[name])) for name in works}


def jax_works(convolve, x, kernel, g):
    """The three parts of `convolve(x, kernel)`, compiled."""
    import jax

    functions = {
        "forward": lambda x, k, g: convolve(x, k),
        "input_gradient": lambda x, k, g: jax.vjp(lambda x: convolve(x, k), x)[1](g)[0],
        "kernel_gradient": lambda x, k, g: jax.vjp(lambda k: convolve(x, k), k)[1](g)[0],
    }
    compiled = {part: jax.jit(function).lower(x, kernel, g).compile() for part, function in functions.items()}
    return {part: lambda f=f: f(x, kernel, g).block_until_ready() for part, f in compiled.items()}


def torch_works(x, kernel, g, stride, pads, rate):
    """The same three parts in PyTorch, channels last; empty where it is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    import numpy as np

    torch.set_num_threads(len(os.sched_getaffinity(0)))  # whatever it found when it was loaded
    x, g = (torch.tensor(np.asarray(a)).permute(0, 3, 1, 2) for a in (x, g))
    kernel = torch.tensor(np.asarray(kernel)).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    options = ([stride] * 2, [before for before, _ in pads], [rate] * 2, False, [0, 0], 1)
    operations = torch.ops.aten

    def backward(mask):
        return lambda: operations.convolution_backward(g, x, kernel, None, *options, mask)

    return {
        "forward": lambda: operations.convolution(x, kernel, None, *options),
        "input_gradient": backward([True, False, False]),
        "kernel_gradient": backward([False, True, False]),
    }


def measure(shape, repeats):
    """part -> library -> {"seconds", "processor_seconds"} of one shape."""
    import jax
    from jax import lax

    from jaxseg.ops.conv import conv

    batch, size, c, n, k, stride, rate, _ = shape
    size_of_kernel = (k, k) if isinstance(k, int) else k
    pads = tuple(((taps - 1) // 2 * rate,) * 2 for taps in size_of_kernel)

    def stock(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), pads, rhs_dilation=(rate, rate), dimension_numbers=numbers
        )

    def ours(x, kernel):
        return conv(x, kernel, strides=stride, padding=pads, dilation=rate)

    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (batch, size, size, c)), jax.random.normal(keys[1], (*size_of_kernel, c, n))
    g = jax.random.normal(keys[2], jax.eval_shape(stock, x, kernel).shape)
    by_library = {
        "xla": jax_works(stock, x, kernel, g),
        "jaxseg": jax_works(ours, x, kernel, g),
        "torch": torch_works(x, kernel, g, stride, pads, rate),
    }
    found = {}
    for part in PARTS:
        times = alternate({name: works[part] for name, works in by_library.items() if works}, repeats)
        found[part] = {name: {"seconds": wall, "processor_seconds": cpu} for name, (wall, cpu) in times.items()}
    return found


def line(shape, found):
    """One line of the printed table: processor milliseconds of forward / input gradient / kernel gradient."""
    batch, size, c, n, k, stride, rate, count = shape
    kernel = f"{k}x{k}" if isinstance(k, int) else "x".join(map(str, k))
    cells = [
        f"{name} " + " / ".join(f"{1e3 * found[part][name]['processor_seconds']:.1f}" for part in PARTS)
        for name in found["forward"]
    ]
    return f"{count} x [{batch}x{size}x{size}x{c} -> {n}, {kernel}, stride {stride}, rate {rate}] " + "; ".join(cells)


def main():
    """Measures, prints, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=pathlib.Path)
    parser.add_argument("--networks", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cores", type=int, default=0, help="0: as many as there are")
    parser.add_argument("--machine", default="", help="in words")
    arguments = parser.parse_args()
    if arguments.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-arguments.cores :])
        os.environ["OMP_NUM_THREADS"] = str(arguments.cores)
    versions = {}
    for package in ("jax", "jaxlib", "torch"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    record = {
        "command": shlex.join([*COMMAND, *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": arguments.machine or platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions,
        "fields": ["batch", "size", "c", "n", "kernel", "stride", "rate", "count"],
        "networks": {},
    }
    for network in arguments.networks:
        rows = record["networks"][network] = []
        for shape in SHAPES[network]:
            found = measure(shape, arguments.repeats)
            rows.append({"shape": list(shape), **found})
            print(line(shape, found), flush=True)
            arguments.result.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
