"""`python -m jaxseg.tools.doctor`: versions, devices, input workers, folders; and what is wrong, in sentences.

Exit status 0 when nothing is wrong, 1 otherwise. A sentence says what is wrong, a second one what to do.
"""

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SUPPORTED_PYTHON = ((3, 11), (3, 12))
LOW_DISK_BYTES = 5 * 2**30
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^ #]+)")


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
      title: what was looked at.
      lines: what was found.
      faults: sentences: what is wrong, and what to do.
    """

    title: str
    lines: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


def check_versions(requirements: pathlib.Path = REPOSITORY / "requirements.txt") -> Finding:
    """Python's version, and the installed packages against the pinned ones.

    Args:
      requirements: file with lines `name==version`.
    """
    faults = []
    if sys.version_info[:2] not in SUPPORTED_PYTHON:
        faults.append(f"Python {platform.python_version()} is not tested with jaxseg. Use 3.11 or 3.12.")
    lines = [f"python {platform.python_version()}, {platform.platform()}"]
    for name, pinned in pins(requirements):
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{name} missing")
            faults.append(f"{name} is not installed. Run: {sys.executable} -m pip install {name}=={pinned}")
            continue
        note = "" if installed == pinned else f" (tested with {pinned})"
        lines.append(f"{name} {installed}{note}")
    return Finding("Versions", tuple(lines), tuple(faults))


def pins(requirements: pathlib.Path) -> list[tuple[str, str]]:
    """(name, version) of every pinned line; none where the file is not there (jaxseg installed as a package)."""
    if not requirements.is_file():
        return []
    matches = [PIN.match(line) for line in requirements.read_text(encoding="utf-8").splitlines()]
    return [(match[1], match[2]) for match in matches if match]


def check_devices() -> Finding:
    """The devices that JAX sees, and whether one computes."""
    import jax
    import jax.numpy as jnp

    try:
        devices = jax.devices()
        total = float(jax.jit(jnp.sum)(jnp.arange(8, dtype=jnp.float32)))
    except Exception as error:  # whatever a backend's start raises is what the person has to read
        return Finding(
            "Devices", faults=(f"JAX finds no usable device: {error}. JAX_PLATFORMS=cpu uses the CPU alone.",)
        )
    lines = [f"{len(devices)} x {devices[0].device_kind} ({jax.default_backend()}), {os.cpu_count()} CPU cores"]
    faults = []
    if total != 28.0:
        faults.append(f"0 + 1 + ... + 7 gives {total} on {devices[0]}. The device or its driver is broken.")
    if jax.default_backend() == "cpu" and shutil.which("nvidia-smi"):
        faults.append(
            "There is an NVIDIA driver, but JAX uses the CPU. "
            "Run launch/local.sh with --accelerator=cuda, which installs JAX's CUDA wheels."
        )
    return Finding("Devices", tuple(lines), tuple(faults))


def check_workers(count: int = 2) -> Finding:
    """Whether Grain's worker processes start and give what one process gives.

    Args:
      count: number of worker processes.
    """
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain's workers read absl's flags
        flags.FLAGS(["doctor"], known_only=True)
    data = grain.MapDataset.range(8).map(_square).to_iter_dataset()
    try:
        # The iterator's processes end with it, on an error as well.
        got = list(data.mp_prefetch(grain.MultiprocessingOptions(num_workers=count)))
    except Exception as error:  # any failure to start a process has the same remedy
        return Finding("Input workers", faults=(_no_workers(f"they do not start ({type(error).__name__}: {error})"),))
    if [int(value) for value in got] != [i * i for i in range(8)]:
        return Finding("Input workers", faults=(_no_workers(f"they give {got} for the squares of 0..7"),))
    return Finding("Input workers", (f"{count} Grain worker processes work",))


def _square(value: int) -> int:
    return value * value


def _no_workers(what: str) -> str:
    return f"Grain's worker processes do not work: {what}. --config.data.workers=0 reads in the main process instead."


def check_folders(folders: Iterable[tuple[str, pathlib.Path]] | None = None) -> Finding:
    """Whether the caches can be written, and the room on their disks.

    Args:
      folders: (what it is for, path); the compilation cache, prepared data and this folder by default.
    """
    lines, faults = [], []
    for purpose, path in folders if folders is not None else default_folders():
        existing = next(p for p in (path, *path.absolute().parents) if p.is_dir())
        free = shutil.disk_usage(existing).free
        lines.append(f"{purpose}: {path}{'' if path.is_dir() else ' (not made yet)'}, {free / 2**30:.1f} GiB free")
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            faults.append(
                f"{purpose}: {existing} cannot be written ({error.strerror}). Change its owner or its rights."
            )
        if free < LOW_DISK_BYTES:
            faults.append(
                f"{purpose}: only {free / 2**30:.1f} GiB are free on the disk of {existing}. Make room there."
            )
    return Finding("Folders", tuple(lines), tuple(faults))


def default_folders() -> list[tuple[str, pathlib.Path]]:
    """The folders that a run writes to, as the environment's variables set them."""
    cache = pathlib.Path.home() / ".cache" / "jaxseg"
    return [
        ("compiled programs", pathlib.Path(os.environ.get("JAXSEG_CACHE", cache)) / "xla"),
        ("prepared data", pathlib.Path(os.environ.get("JAXSEG_DATA_DIR") or cache / "data")),
        ("runs", pathlib.Path.cwd() / "runs"),
    ]


CHECKS: tuple[Callable[[], Finding], ...] = (check_versions, check_devices, check_workers, check_folders)


def main(checks: Iterable[Callable[[], Finding]] = CHECKS) -> int:
    """Runs the checks, prints what they find; returns 1 where something is wrong, else 0."""
    faults: list[str] = []
    for check in checks:
        try:
            finding = check()
        except ImportError as error:
            # A package that is missing altogether; the check of the versions names it with its remedy.
            finding = Finding(
                check.__name__.removeprefix("check_").capitalize(), faults=(f"Cannot be checked: {error}.",)
            )
        print(finding.title)
        for line in finding.lines:
            print(f"  {line}")
        for fault in finding.faults:
            print(f"  WRONG: {fault}")
        faults += finding.faults
    print(f"\n{len(faults)} thing{'s are' if len(faults) > 1 else ' is'} wrong." if faults else "\nNothing is wrong.")
    return 1 if faults else 0


if __name__ == "__main__":
    # Grain's workers import this module by its name to find _square; as __main__ they would not.
    from jaxseg.tools import doctor

    sys.exit(doctor.main())
