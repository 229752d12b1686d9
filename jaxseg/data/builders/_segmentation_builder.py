"""The TFDS builder that every data set shares: checks each example, writes encoded bytes to ArrayRecord.

A data set's own builder says which files make which split (`raw_splits`). This one checks that every image and label
decodes and that their sizes agree, writes anew what does not decode alike everywhere, and records in the metadata what
training wants to know at once: the largest size of a split, examples left out, label values outside the classes.
"""

import abc
import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from rich.console import Console
from rich.progress import Progress

from jaxseg.core.errors import BadExampleError, JaxsegError
from jaxseg.core.types import DatasetInfo
from jaxseg.data import decode

POLICIES = ("raise", "skip")
CHUNK = 64
MAX_NAMED = 100
"""Metadata names at most so many examples with foreign label values; it counts all of them."""


@dataclasses.dataclass(frozen=True)
class RawExample:
    """Where one example lies before it is prepared."""

    name: str
    image: pathlib.Path
    label: pathlib.Path


def default_data_dir() -> pathlib.Path:
    """`$JAXSEG_DATA_DIR`, or `~/.cache/jaxseg/data`."""
    return pathlib.Path(os.environ.get("JAXSEG_DATA_DIR") or "~/.cache/jaxseg/data").expanduser()


def fingerprint(
    *, options: Mapping[str, Any], files: Iterable[pathlib.Path] = (), root: pathlib.Path | None = None
) -> str:
    """Twelve hex digits that change when what would be prepared changes.

    Args:
      options: everything besides files that decides the result; JSON.
      files: files and folders; of a folder the files directly in it. Name, size and time of change count, so that an
        edited label is noticed without reading all data.
      root: names are taken relative to it.

    Returns:
      the first 12 digits of a SHA-256.
    """
    entries = []
    for path in files:
        for item in sorted(os.scandir(path), key=lambda e: e.name) if path.is_dir() else [path]:
            state = item.stat()
            name = os.path.relpath(os.fspath(item), root) if root else os.path.basename(os.fspath(item))
            entries.append((name, state.st_size, state.st_mtime_ns))
    text = json.dumps([dict(options), entries], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_list(path: pathlib.Path) -> list[str]:
    """The lines of a list file that are not blank, stripped.

    Raises:
      JaxsegError: the file is missing or holds no line.
    """
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise JaxsegError(
            f"{path}: the list of examples cannot be read ({error}). Check config.data.manual_dir."
        ) from error
    lines = [line for line in lines if line]
    if not lines:
        raise JaxsegError(f"{path}: the split is empty, the list names no example. Put one name a line into it.")
    return lines


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Images and label maps as encoded bytes; see the module's docstring.

    Attributes:
      FACTS: the data set's DatasetInfo.
      joined: virtual splits, name -> the prepared splits that follow one another in it.
      absent: splits that could exist, name -> why this one is not here and what to do.
      scratch: a folder that lives while the data is prepared.
    """

    VERSION = tfds.core.Version("1.0.0")
    FACTS: ClassVar[DatasetInfo]
    # TFDS 4.9 looks for a checksum file beside the class by way of importlib_resources, which it does not install on
    # Python 3.9 and later. Downloads are checked by the data sets' own builders.
    url_infos = None
    code_path = None

    def __init__(self, *, data_dir: str | os.PathLike = "", key: str, on_bad_example: str = "raise") -> None:
        if on_bad_example not in POLICIES:
            raise JaxsegError(f"config.data.on_bad_example = {on_bad_example!r}: use one of {', '.join(POLICIES)}.")
        self.on_bad_example = on_bad_example
        self.joined: dict[str, tuple[str, ...]] = {}
        self.absent: dict[str, str] = {}
        self.scratch = pathlib.Path()
        self._progress: Progress | None = None
        root = pathlib.Path(data_dir).expanduser() if data_dir else default_data_dir()
        config = tfds.core.BuilderConfig(name=f"{key}-{on_bad_example}", version=str(self.VERSION))
        with quiet_tfds():
            super().__init__(data_dir=root, config=config, file_format="array_record")

    @abc.abstractmethod
    def raw_splits(self, dl_manager: tfds.download.DownloadManager) -> dict[str, list[RawExample]]:
        """Split name -> its examples in order; may set `joined` and `absent`, and write under `scratch`."""

    def load_label(self, path: pathlib.Path, name: str) -> tuple[bytes, np.ndarray]:
        """Canonical PNG bytes and ids of a label file; data sets whose labels are no pictures override it."""
        return decode.canonical_label(_read_file(path), name=name)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "name": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.Image(shape=(None, None, 1), dtype=np.uint16, encoding_format="png"),
                }
            ),
            metadata=tfds.core.MetadataDict(),
            # Keeps the order of the lists: index i of a split is line i of its list.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, dict]]]:
        splits = self.raw_splits(dl_manager)
        metadata = self.info.metadata
        metadata.update(joined=self.joined, absent=self.absent, splits={name: {} for name in splits})
        return {name: self._generate_examples(name, examples) for name, examples in splits.items()}

    def _generate_examples(self, split: str, examples: Sequence[RawExample]) -> Iterator[tuple[int, dict]]:
        report: dict[str, Any] = {"max_size": [0, 0], "skipped": [], "foreign": {}, "foreign_count": 0}
        self.info.metadata["splits"][split] = report
        if not examples:
            raise JaxsegError(f"{self.name}: split {split!r} is empty. Check the lists in config.data.manual_dir.")
        checked = self.advance(f"preparing {self.name} {split}", len(examples))
        key = 0
        for result in self._checked(examples):
            checked()
            if isinstance(result, BadExampleError):
                report["skipped"].append(str(result))
                continue
            name, image, label, ids = result
            self._note(report, name, ids)
            # TFDS encodes arrays with TensorFlow; encoded bytes need none.
            yield key, {"name": name, "image": io.BytesIO(image), "label": io.BytesIO(label)}
            key += 1
        if not key:
            first = report["skipped"][0]
            raise JaxsegError(f"{self.name}: split {split!r} is empty, every example was bad; the first: {first}")

    def _checked(self, examples: Sequence[RawExample]) -> Iterator[Any]:
        """Checks examples on all cores, in order, a chunk in memory at a time."""
        todo = iter(examples)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            while chunk := list(itertools.islice(todo, CHUNK)):
                yield from pool.map(self._check, chunk)

    def _check(self, example: RawExample) -> tuple[str, bytes, bytes, np.ndarray] | BadExampleError:
        try:
            image, size = decode.canonical_image(_read_file(example.image), name=str(example.image))
            label, ids = self.load_label(example.label, str(example.label))
            if ids.shape != size:
                raise BadExampleError(
                    f"{example.image} has {size[1]}x{size[0]} pixels (w x h) but its label {example.label} has "
                    f"{ids.shape[1]}x{ids.shape[0]}. Replace one of them; labels are never resized."
                )
        except BadExampleError as error:
            if self.on_bad_example == "raise":
                hint = "To train on the rest set config.data.on_bad_example='skip'."
                raise BadExampleError(f"{error} {hint}") from error
            return error
        return example.name, image, label, ids

    def _note(self, report: dict[str, Any], name: str, ids: np.ndarray) -> None:
        report["max_size"] = [max(report["max_size"][0], ids.shape[0]), max(report["max_size"][1], ids.shape[1])]
        present = np.flatnonzero(np.bincount(ids.ravel()))
        foreign = [int(v) for v in present if v >= self.FACTS.num_classes and v != self.FACTS.void]
        if foreign:
            report["foreign_count"] += 1
            if len(report["foreign"]) < MAX_NAMED:
                report["foreign"][name] = foreign[:MAX_NAMED]

    def advance(self, what: str, total: int) -> Callable[[], None]:
        """Adds a line to the progress display; call the result after each of `total` steps."""
        if self._progress is None:
            return lambda: None
        return functools.partial(self._progress.advance, self._progress.add_task(what, total=total))

    def prepare_with_progress(self, console: Console, scratch: pathlib.Path) -> None:
        """Prepares the data (TFDS writes into a folder beside and renames it at the end) and shows how far it is."""
        self.scratch = scratch
        with quiet_tfds(), Progress(console=console) as self._progress:
            self.download_and_prepare()
        self._progress = None


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """TFDS warns about every configuration that is not written in its class, and draws bars of its own."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(before)


def _read_file(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadExampleError(f"{path}: cannot be read ({error.strerror}). Check that the file is there.") from error
