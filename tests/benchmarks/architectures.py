"""`python -m tests.benchmarks.architectures RESULT.json`: every architecture at equal steps on the embedded data.

Runs experiments/architectures.py for each name in a process of its own, one after another, and writes mIoU and pixel
accuracy on the validation scenes, parameters, FLOPs of a forward pass by XLA's count, images/s while training (median
of the log lines after the first), and seconds of the whole run, start and compilation included.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

from tests.benchmarks.losses_and_metrics import versions

CLASSES = {"shapes": 21, "camvid": 11}
COMMAND = ("python", "-m", "tests.benchmarks.architectures")


def cost(name, classes):
    """Parameters and FLOPs of one image of the crop's size."""
    import jax
    import jax.numpy as jnp

    from experiments.architectures import get_config
    from jaxseg.core.names import resolve

    config = get_config(name)
    options = config.model.to_dict()
    for key in ("name", "image_mean", "image_std"):
        options.pop(key)
    model = resolve("models", name)(num_classes=classes, **options)
    image = jax.ShapeDtypeStruct((1, *config.data.crop_size_px, 3), jnp.float32)
    key = jax.random.key(0)
    variables = jax.eval_shape(lambda x: model.init({"params": key, "dropout": key}, x, train=False), image)
    compiled = jax.jit(lambda v, x: model.apply(v, x, train=False)["logits"]).lower(variables, image).compile()
    return sum(p.size for p in jax.tree.leaves(variables["params"])), compiled.cost_analysis()["flops"]


def train(name, data, manual_dir, steps, workdir):
    """One run of the experiment; returns what its metrics file says."""
    command = [sys.executable, "-m", "jaxseg.main", f"--config=experiments/architectures.py:{name},{data}"]
    command += [f"--workdir={workdir}", f"--config.train.total_steps={steps}"]
    command += [f"--config.data.manual_dir={manual_dir}"] if manual_dir else []
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    logs = [r for r in records if "images_per_second" in r]
    last = [r for r in records if "iou" in r][-1]
    return {
        "miou_present": last["miou_present"],
        "pixel_accuracy": last["pixel_accuracy"],
        "images_per_second": statistics.median(r["images_per_second"] for r in logs[1:] or logs),
        "loss": logs[-1]["loss"],
        "seconds": seconds,
    }


def main():
    """Runs the names in turn; a result is written after each, so that what was measured is kept."""
    from experiments.architectures import NARROW

    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.architectures", description=__doc__)
    parser.add_argument("result", type=pathlib.Path)
    parser.add_argument("--names", default=",".join(NARROW))
    parser.add_argument("--data", default="shapes", help="shapes or camvid")
    parser.add_argument("--manual-dir", default="", help="where camvid is")
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    result = {
        "command": shlex.join([*COMMAND, arguments.result.name, *(a for a in sys.argv[1:] if a.startswith("-"))]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
        "data": arguments.data,
        "steps": arguments.steps,
        "networks": {},
    }
    for name in arguments.names.split(","):
        with tempfile.TemporaryDirectory() as folder:
            found = train(name, arguments.data, arguments.manual_dir, arguments.steps, pathlib.Path(folder) / name)
        found["parameters"], found["flops"] = cost(name, CLASSES[arguments.data])
        result["networks"][name] = found
        arguments.result.write_text(json.dumps(result, indent=1) + "\n")
        shown = f"{name:16} mIoU {found['miou_present']:.3f} {found['parameters'] / 1e6:6.2f} M parameters"
        print(f"{shown} {found['flops'] / 1e9:6.2f} GFLOP {found['images_per_second']:6.1f} images/s", flush=True)


if __name__ == "__main__":
    main()
