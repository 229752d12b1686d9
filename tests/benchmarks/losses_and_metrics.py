"""`python -m tests.benchmarks.losses_and_metrics RESULT.json`: what losses, distances and counting cost, as ratios.

Alternating in one process, medians. Part `losses`: forward and backward of each loss against plain cross-entropy, at
8 x 512 x 512 x 21. Part `distance`: the squared distance transform against SciPy's, on one core. Part `counting`: the
confusion counts against the argmax of the logits and, where it is installed, torchmetrics' confusion matrix.
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
import subprocess
import sys
import time

COMMAND = ("python", "-m", "tests.benchmarks.losses_and_metrics")
PARTS = ("losses", "distance", "counting")


def alternate(works, repeats):
    """Median seconds of each work, name -> seconds; each is called once before, and then in turn."""
    for work in works.values():
        work()
    seconds = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def label_maps(rows, size, classes, seed=0):
    """Blobs of all classes, about 40 pixels wide, int32 `[rows, size, size]`."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (rows, max(1, size // 40), max(1, size // 40))).astype(np.uint8)
    return np.stack([cv2.resize(c, (size, size), interpolation=cv2.INTER_NEAREST) for c in coarse]).astype(np.int32)


def losses(repeats, size, classes, rows):
    """Forward and backward of each loss, against cross-entropy in the same turn."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxseg.core.names import resolve
    from tests.contract.test_losses import NAMES, NEEDED

    labels = jnp.asarray(label_maps(rows, size, classes))
    logits = jax.random.normal(jax.random.key(0), (*labels.shape, classes)) + 2 * jax.nn.one_hot(labels, classes)
    where = jnp.asarray(np.random.default_rng(1).random(labels.shape) > 0.05)

    def work_of(name):
        loss = resolve("losses", name)(**NEEDED.get(name, {}))
        step = jax.jit(jax.value_and_grad(lambda x, y, w: loss.mean(x, y, where=w)))
        return lambda: jax.block_until_ready(step(logits, labels, where))

    plain = work_of("cross_entropy")
    found = {}
    for name in NAMES:
        pair = alternate({"cross_entropy": plain, name: work_of(name)}, repeats)
        found[name] = {"seconds": pair[name], "of_cross_entropy": pair[name] / pair["cross_entropy"]}
        print(f"{name:32} {pair[name]:8.3f} s {found[name]['of_cross_entropy']:8.2f} x cross-entropy", flush=True)
    return {"logits": [rows, size, size, classes], "ratios": found}


def distance(repeats, size, rows):
    """Squared distances to the nearest True pixel, against SciPy's, one image after another."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from scipy.ndimage import distance_transform_edt

    from jaxseg.ops.distance_transform import squared_distance

    single = np.zeros((rows, size, size), bool)
    single[:, size // 3, size // 5] = True
    cases = {
        "boundaries of blobs": np.abs(np.diff(label_maps(rows, size, 12), axis=-1, prepend=0)) > 0,
        "one class of twelve": label_maps(rows, size, 12) == 3,
        "random, 1 in 1,000": np.random.default_rng(0).random((rows, size, size)) < 1e-3,
        "one pixel": single,
    }
    ours = jax.jit(squared_distance)
    found = {}
    for name, targets in cases.items():
        placed = jnp.asarray(targets)
        works = {
            "jaxseg": lambda placed=placed: jax.block_until_ready(ours(placed)),
            "scipy": lambda targets=targets: [distance_transform_edt(~image) for image in targets],
        }
        pair = alternate(works, repeats)
        exact = np.rint(np.square([distance_transform_edt(~image) for image in targets]))
        assert np.array_equal(exact, np.asarray(works["jaxseg"]())), name
        found[name] = pair | {"ratio": pair["jaxseg"] / pair["scipy"]}
        print(f"{name:24} jaxseg {pair['jaxseg']:.4f} s, SciPy {pair['scipy']:.4f} s: {found[name]['ratio']:.2f}")
    return {"targets": [rows, size, size], "cores": len(os.sched_getaffinity(0)), "cases": found}


def counting(repeats, size, classes, rows):
    """Confusion counts, the argmax before them, and torchmetrics'."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxseg.metrics.confusion import confusion_counts

    labels = jnp.asarray(label_maps(rows, size, classes))
    logits = jax.random.normal(jax.random.key(0), (*labels.shape, classes)) + 2 * jax.nn.one_hot(labels, classes)
    argmax = jax.jit(lambda x: jnp.argmax(x, axis=-1).astype(jnp.int32))
    predictions = jax.block_until_ready(argmax(logits))
    count = jax.jit(lambda y, p: confusion_counts(y, p, num_classes=classes))
    works = {
        "counts": lambda: jax.block_until_ready(count(labels, predictions)),
        "argmax": lambda: jax.block_until_ready(argmax(logits)),
    }
    try:
        import torch
        from torchmetrics.functional.classification import multiclass_confusion_matrix
    except ImportError:
        print("torchmetrics is not installed: not compared")
    else:
        there, here = torch.from_numpy(np.array(labels)).long(), torch.from_numpy(np.array(predictions)).long()
        works["torchmetrics"] = lambda: multiclass_confusion_matrix(here, there, classes, validate_args=False)
        assert np.array_equal(works["torchmetrics"]().numpy(), count(labels, predictions))
    seconds = alternate(works, repeats)
    for name, value in seconds.items():
        print(f"{name:14} {value:.4f} s, counts are {seconds['counts'] / value:.3f} of it")
    return {"logits": [rows, size, size, classes], "seconds": seconds}


def versions():
    """Installed versions of what was compared."""
    found = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "numpy", "scipy", "torch", "torchmetrics"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def run_part(part, repeats, small):
    """One part in this process."""
    size = 64 if small else 512
    if part == "losses":
        return losses(repeats, size, 21, 8)
    if part == "distance":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before JAX starts its threads
        return distance(repeats, size, 8)
    return counting(repeats, size, 150, 2 if small else 8)


def main():
    """Runs each part in a process of its own and writes the result."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.losses_and_metrics", description=__doc__)
    parser.add_argument("result", type=pathlib.Path)
    parser.add_argument("--parts", default=",".join(PARTS), help="which of " + ", ".join(PARTS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="64 pixels: does it run at all?")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        found = run_part(arguments.parts, arguments.repeats, arguments.small)
        arguments.result.write_text(json.dumps(found))
        return
    result = {
        "command": shlex.join([*COMMAND, arguments.result.name, *(a for a in sys.argv[1:] if a.startswith("-"))]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
    }
    for part in arguments.parts.split(","):
        beside = arguments.result.with_suffix(f".{part}.tmp")
        options = ["--inside", f"--parts={part}", f"--repeats={arguments.repeats}"] + ["--small"] * arguments.small
        module = ["-m", "tests.benchmarks.losses_and_metrics"]
        subprocess.run([sys.executable, *module, str(beside), *options], check=True)
        result[part] = json.loads(beside.read_text())
        beside.unlink()
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")
    print(f"Written: {arguments.result}")


if __name__ == "__main__":
    main()
