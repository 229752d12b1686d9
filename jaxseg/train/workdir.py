"""The work directory: which run it belongs to, and what that run was made with."""

import datetime
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from typing import Any

import jax

from jaxseg.core.errors import JaxsegError
from jaxseg.core.files import write_text

CHANGEABLE = (
    "train.log_every_steps",
    "checkpoint.",
    "evaluate.",
    "data.workers",
    "data.prefetch_batches",
    "data.data_dir",
    "data.manual_dir",
    "mesh.",
    "bench.",
    "weights.path",
    "weights.skip",
)
"""Keys that may differ when a run is resumed: they do not change what is computed."""

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "ml-collections",
    "numpy",
)


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` to `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def versions() -> dict[str, str]:
    """What a run is made with: command, date, machine, git revision, Python and the packages."""
    root = pathlib.Path(__file__).resolve().parents[2]
    git = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    devices = jax.devices()
    found = {
        "command": shlex.join(["python", "-m", "jaxseg.main", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {_processor()}",
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "git": git.stdout.strip() or "not a git checkout",
        "python": platform.python_version(),
    }
    return found | {name: metadata.version(name) for name in PACKAGES}


def _processor() -> str:
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def differences(workdir: pathlib.Path, config: dict[str, Any]) -> list[str]:
    """A line for each key, of those that decide what is computed, whose value is not that of the directory's run.

    Raises:
      JaxsegError: the directory has no config of a run, or a damaged one.
    """
    theirs = flatten(read_config(workdir))
    ours = flatten(json.loads(json.dumps(config)))
    return [
        f"  config.{key}: {theirs.get(key, 'absent')!r} there, {ours.get(key, 'absent')!r} now"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key, "absent") != ours.get(key, "absent") and not key.startswith(CHANGEABLE)
    ]


def claim(workdir: pathlib.Path, config: dict[str, Any]) -> None:
    """Makes the work directory this run's, or checks that it already is.

    Raises:
      JaxsegError: it belongs to a run with another config; the message lists the keys that differ.
    """
    path = workdir / "config.json"
    if not path.exists():
        if jax.process_index() == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(config, indent=2))
            write_text(workdir / "versions.json", json.dumps(versions(), indent=2))
        return
    differing = differences(workdir, config)
    if differing:
        raise JaxsegError(
            f"{workdir} holds a run with another config:\n" + "\n".join(differing) + "\n"
            "Give another --workdir to start a new run, or the same values to go on with that one."
        )


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """The config that the work directory's run was started with."""
    path = workdir / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise JaxsegError(
            f"{workdir} is not a work directory: {path.name} is not there. Train first, or correct --workdir."
        ) from None
    except json.JSONDecodeError as error:
        raise JaxsegError(f"{path} is not valid JSON ({error}). Restore it, or give another --workdir.") from error
