"""Traced programs on disk, the train step and the initial values, so that a start with the same does not trace them.

XLA's compilation cache is asked with the lowered program: a start traces the network first, and that is a third of what
FC-DenseNet103's takes. Here the question is all that the programs are made from: the config, the facts of the data set,
the mesh, the sources of jaxseg, the packages, the options of JAX. What differs in one of them is another program, which
is traced as ever, and then kept too.
"""

import dataclasses
import hashlib
import importlib.util
import json
import logging
import os
import pathlib
import platform
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from typing import Any

import flax
import jax
import optax
from jax.export import Exported, deserialize, export

from jaxseg.core.files import write_bytes
from jaxseg.train.run import Run
from jaxseg.train.workdir import CHANGEABLE, PACKAGES, flatten

LOGGER = logging.getLogger(__name__)
SOURCES = pathlib.Path(__file__).resolve().parents[1]
TRACED_WITH = (jax, flax, optax)
OPTIONS = ("JAX_", "XLA_", "LIBTPU_", "CUDA_", "CUDNN_", "NVIDIA_")
DIGEST_BYTES = hashlib.sha256().digest_size
KEPT = 128
# Keys of the config that no program sees: the seed is an argument of the initial values', and the step has the state's.
UNSEEN = (*CHANGEABLE, "seed")


class ProgramStore:
    """A folder of traced programs (StableHLO by `jax.export`, no machine code, no pickles); the newest 128 stay.

    Args:
      folder: where the files are, `<key>.stablehlo` each; made where it is missing.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self._folder = pathlib.Path(folder)

    def of(self, run: Run) -> "RunPrograms | None":
        """The programs of this run; None where it keeps none (`program_key`)."""
        key = program_key(run)
        return RunPrograms(self, key) if key else None

    def find(self, key: str) -> Exported | None:
        """What `save` has kept under this key; None where there is nothing, or nothing that can be read."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            LOGGER.warning("%s; the program is traced again.", error)
            return None
        digest, packed = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if hashlib.sha256(packed).digest() != digest:
            LOGGER.warning("%s is damaged; the program is traced again.", path)
            return None
        return deserialize(bytearray(zlib.decompress(packed)))

    def save(self, key: str, program: Exported) -> None:
        """Keeps the program under this key; the file is whole or not there."""
        packed = zlib.compress(program.serialize(), 1)
        try:
            write_bytes(self._path(key), hashlib.sha256(packed).digest() + packed)
        except OSError as error:
            LOGGER.warning("A traced program is not kept for the next start: %s.", error)
            return
        files = sorted(self._folder.glob("*.stablehlo"), key=lambda file: file.stat().st_mtime_ns)
        for old in files[:-KEPT]:
            old.unlink(missing_ok=True)

    def _path(self, key: str) -> pathlib.Path:
        return self._folder / f"{key}.stablehlo"


@dataclasses.dataclass(frozen=True)
class RunPrograms:
    """The traced programs of one run: those in the store under its key, each with a name of its own."""

    store: ProgramStore
    key: str

    def traced(
        self, name: str, function: Callable[..., Any], *given: Any, donated: Sequence[int] = ()
    ) -> Exported | None:
        """What is kept under this name; where that is nothing, the function is traced, and that is kept.

        Args:
          name: of the program among the run's.
          function: pure. What tracing it raises is raised here.
          given: its arguments, arrays or their shapes.
          donated: positions of arguments whose memory the results take.

        Returns:
          The program; None where it has no form on disk: host callbacks (`jax.debug.print`), some operations.
        """
        key = f"{self.key}_{name}"
        if found := self.store.find(key):
            return found
        jitted = jax.jit(function, donate_argnums=donated)
        jitted.trace(*given)  # what is wrong with the network is raised here; export takes what is traced
        try:
            program = export(jitted)(*given)
        except (ValueError, NotImplementedError) as reason:
            LOGGER.warning("The traced program %s is not kept for the next start: %s", name, reason)
            return None
        self.store.save(key, program)
        return program


def program_key(run: Run) -> str | None:
    """A hexadecimal digest of all that decides the programs of this run; None where that cannot be told.

    It cannot where a piece of the network is the user's own module, whose sources nobody lists. Several processes,
    which must run one program, trace it too: one's folder may hold what another's does not.
    """
    flat = flatten(run.noted_config())
    if jax.process_count() > 1 or names_of_others(flat):
        return None
    devices = [(device.id, device.device_kind) for device in run.mesh.devices.flat]
    facts = {
        "config": {key: value for key, value in flat.items() if not key.startswith(UNSEEN)},
        "info": dataclasses.asdict(run.info),
        "mesh": [dict(run.mesh.shape), devices, jax.device_count(), jax.default_backend()],
        "packages": {name: metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "installed": [_stamps(pathlib.Path(str(package.__file__)).parent) for package in TRACED_WITH],
        "sources": {file.relative_to(SOURCES).as_posix(): file.read_bytes() for file in SOURCES.rglob("*.py")},
        "options": jax.config.values,
        "environment": {name: value for name, value in os.environ.items() if name.startswith(OPTIONS)},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode()).hexdigest()


def names_of_others(flat: dict[str, Any]) -> list[str]:
    """Names in a flattened config, keys or values, that may be module paths outside of jaxseg (`their_package.net`)."""

    def words(value: Any) -> Iterable[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list | tuple):
            for entry in value:
                yield from words(entry)

    paths = [word for value in flat.values() for word in words(value)]
    paths += [key.removeprefix("loss.") for key in flat if key.startswith("loss.")]
    dotted = [path for path in paths if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", path)]
    return [path for path in dotted if importlib.util.find_spec(path.partition(".")[0]) is not None]


def _stamps(folder: pathlib.Path) -> list[tuple[str, int, int]]:
    """Size and time of each source file: an edited package has its old version."""
    stats = [(file, file.stat()) for file in sorted(folder.rglob("*.py"))]
    return [(file.relative_to(folder).as_posix(), found.st_size, found.st_mtime_ns) for file, found in stats]
