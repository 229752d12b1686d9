"""Starts jaxseg in processes of its own and reads what a run leaves behind."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from tests.conftest import CACHE, REPOSITORY

TIMING = ("images_per_second", "step_seconds", "input_wait_share", "seconds", "time", "wall_time")


def command(workdir: pathlib.Path, *flags: str, config: str = "tests/e2e/tiny.py") -> list[str]:
    """The command line of a run; its drawn data set is prepared once and shared."""
    data_dir = f"--config.data.data_dir={CACHE / 'data'}"
    return [sys.executable, "-m", "jaxseg.main", f"--config={config}", f"--workdir={workdir}", data_dir, *flags]


def environment() -> dict[str, str]:
    """The tests' own, on the CPU, with the shared compilation cache and XLA's own options."""
    own = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return own | {"JAX_PLATFORMS": "cpu", "JAXSEG_CACHE": str(CACHE), "PYTHONUNBUFFERED": "1"}


def start(arguments: list[str], log: pathlib.Path) -> subprocess.Popen:
    """Starts a command in the repository; both its streams go to the log file."""
    with log.open("ab") as file:
        return subprocess.Popen(arguments, cwd=REPOSITORY, env=environment(), stdout=file, stderr=subprocess.STDOUT)


def finish(arguments: list[str], log: pathlib.Path, expect: int = 0) -> str:
    """Runs a command to its end, checks its exit status and returns what it printed."""
    process = start(arguments, log)
    try:
        status = process.wait(timeout=1200)  # a minute where the machine does nothing else
    finally:
        process.kill()
        process.wait()
    text = log.read_text(errors="replace")
    assert status == expect, f"exit status {status}, expected {expect}:\n{text[-4000:]}"
    return text


def metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock measured."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]


def losses(workdir: pathlib.Path) -> np.ndarray:
    """The loss of every step."""
    return np.asarray([line["loss"] for line in metrics(workdir) if "loss" in line])


def final_arrays(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint: parameters, optimiser state, averages, batch norm statistics, rng, step."""
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(workdir.absolute() / "checkpoints" / str(step) / "state")
    flat: dict[str, np.ndarray] = {}

    def collect(prefix: str, node: Any) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                collect(f"{prefix}/{key}", value)
        elif isinstance(node, list | tuple):
            for key, value in enumerate(node):
                collect(f"{prefix}/{key}", value)
        elif node is not None:
            flat[prefix] = np.asarray(node)

    collect("", tree)
    return flat


def assert_same_run(one: pathlib.Path, other: pathlib.Path, step: int) -> None:
    """Both runs ended with the same bits everywhere and wrote the same metrics."""
    first, second = final_arrays(one, step), final_arrays(other, step)
    assert first.keys() == second.keys()
    names = " ".join(first)
    assert all(part in names for part in ("/params/", "/ema/", "/opt_state/", "/batch_stats/", "/rng", "/step"))
    different = [name for name in first if first[name].tobytes() != second[name].tobytes()]
    assert not different, f"{len(different)} of {len(first)} arrays differ: {different[:5]}"
    assert metrics(one) == metrics(other)
