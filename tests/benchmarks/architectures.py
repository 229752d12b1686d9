"""`python -m tests.benchmarks.architectures RESULT.json [--part=train|speed]`: every architecture, alike.

Part `train` runs experiments/architectures.py for each name in a process of its own, one after another, and writes
mIoU and pixel accuracy on the validation scenes with running and with recomputed batch-norm statistics, parameters, and
FLOPs of a forward pass by XLA's count. Part `speed` adds what --mode=bench finds at the crop's size, batch 8: images/s,
compilation, FLOPs, memory; it wants a machine that does nothing else. Both go into the same file; what it holds of the
other part stays.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import tempfile

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
    parameters = sum(p.size for p in jax.tree.leaves(variables["params"]))
    return {"parameters": parameters, "flops": compiled.cost_analysis()["flops"], "norms": "batch_stats" in variables}


def recomputed(command, workdir):
    """The same metrics with batch norm's statistics of the whole training set, as SegNet's authors take them.

    The running ones remember some ten batches of four crops, and the mean over a crop that DeepLab, KSAC and PSPNet
    normalise has four values in each: after 300 steps that noise is larger than what tells networks apart.
    """
    asked = [*command, "--mode=evaluate", "--config.evaluate.batch_statistics=recomputed"]
    subprocess.run(asked, check=True, stdout=subprocess.DEVNULL)
    metrics = json.loads((workdir / "evaluation.json").read_text())["metrics"]
    return {f"recomputed_{name}": metrics[name] for name in ("miou_present", "pixel_accuracy")}


def train(name, data, manual_dir, steps, workdir):
    """One run of the experiment; returns what its metrics file says."""
    command = [sys.executable, "-m", "jaxseg.main", f"--config=experiments/architectures.py:{name},{data}"]
    command += [f"--workdir={workdir}", f"--config.train.total_steps={steps}"]
    command += [f"--config.data.manual_dir={manual_dir}"] if manual_dir else []
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = cost(name, CLASSES[data])
    found |= recomputed(command, workdir) if found["norms"] else {}
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in records if "loss" in r]
    last = [r for r in records if "iou" in r][-1]
    return found | {
        "miou_present": last["miou_present"],
        "pixel_accuracy": last["pixel_accuracy"],
        "loss": losses[-1],
    }


def speed(name, data, batch_size, workdir):
    """The bench of the experiment; returns images/s, seconds to compile, FLOPs an image and memory of both parts."""
    command = [sys.executable, "-m", "jaxseg.main", "--mode=bench", f"--workdir={workdir}"]
    command += [f"--config=experiments/architectures.py:{name},{data}", f"--config.train.batch_size={batch_size}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    bench = json.loads((workdir / "bench.json").read_text())
    found = {"batch_size": batch_size, "size_px": bench["settings"]["size_px"]}
    for part in ("train", "inference"):
        program = bench[part]["program"]
        found[part] = {
            "images_per_second": bench[part]["images_per_second"],
            "seconds": bench[part]["seconds"],
            "lower_seconds": program["lower_seconds"],
            "compile_seconds": program["compile_seconds"],
            "flops_an_image": program["flops"] / batch_size,
            "share_of_matrix_rate": bench[part]["share_of_matrix_rate"],
            "memory_bytes": program["memory"]["total"],
        }
    return found


def made_with(arguments):
    """Command, date, machine and versions; folders of the machine are left out of the command."""
    given = {"part": arguments.part, "data": arguments.data, "names": arguments.names}
    given |= {"steps": arguments.steps} if arguments.part == "train" else {"batch-size": arguments.batch_size}
    given |= {"manual-dir": "DIR"} if arguments.manual_dir else {}
    options = [f"--{name}={value}" for name, value in given.items()]
    return {
        "command": shlex.join([*COMMAND, arguments.result.name, *options]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
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
    parser.add_argument("--part", choices=("train", "speed"), default="train")
    parser.add_argument("--batch-size", type=int, default=8, help="of part speed")
    arguments = parser.parse_args()
    result = json.loads(arguments.result.read_text()) if arguments.result.is_file() else {"networks": {}}
    if arguments.part == "speed":
        result["speed"] = made_with(arguments)
    else:
        result |= made_with(arguments) | {"data": arguments.data, "steps": arguments.steps}
    for name in arguments.names.split(","):
        entry = result["networks"].setdefault(name, {})
        with tempfile.TemporaryDirectory() as folder:
            workdir = pathlib.Path(folder) / name
            if arguments.part == "speed":
                entry["speed"] = speed(name, arguments.data, arguments.batch_size, workdir)
            else:
                entry |= train(name, arguments.data, arguments.manual_dir, arguments.steps, workdir)
        arguments.result.write_text(json.dumps(result, indent=1) + "\n")
        print(line_of(name, entry, arguments.part), flush=True)


def line_of(name, entry, part):
    """What was just found of a network, as a line."""
    if part == "speed":
        ways = [f"{way} {entry['speed'][way]['images_per_second']:6.1f} images/s" for way in ("train", "inference")]
        return f"{name:16} {', '.join(ways)}, compiled in {entry['speed']['train']['compile_seconds']:.0f} s"
    miou = entry.get("recomputed_miou_present", entry["miou_present"])
    shown = f"{name:16} mIoU {miou:.3f} ({entry['miou_present']:.3f}) {entry['parameters'] / 1e6:6.2f} M parameters"
    return f"{shown} {entry['flops'] / 1e9:6.2f} GFLOP"


if __name__ == "__main__":
    main()
