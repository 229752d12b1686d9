"""Opens a data set by its name: prepares it once, then reads it at random access."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from rich.console import Console

from jaxseg.core.errors import JaxsegError
from jaxseg.core.names import call_with_options, close_matches, resolve
from jaxseg.core.types import DatasetInfo
from jaxseg.data import decode

try:
    import fcntl
except ImportError:  # not on this platform: two processes that prepare at once both do the work, the last rename wins
    fcntl = None  # type: ignore[assignment]


def open_dataset(data_config: Mapping[str, Any]) -> "Dataset":
    """Opens `config.data.name`, after preparing it where that has not been done yet.

    Prepared data lies in `data_dir/<name>/<key>/<version>`; the key changes with the files of manual_dir and with the
    builder's options, so that other data is never taken for the same.

    Args:
      data_config: `name`; optional `manual_dir`, `data_dir`, `on_bad_example`, `builder` (options of that builder).

    Returns:
      the open data set.

    Raises:
      JaxsegError: data missing, bad examples (under `raise`), an empty split, no room on the disk.
    """
    name = data_config["name"]
    builder = call_with_options(
        resolve("data.builders", name),
        dict(data_config.get("builder") or {}),
        where="config.data.builder",
        manual_dir=data_config.get("manual_dir") or "",
        data_dir=data_config.get("data_dir") or "",
        on_bad_example=data_config.get("on_bad_example") or "raise",
    )
    prepare(builder)
    return Dataset(builder.FACTS, builder.data_dir)


def prepare(builder: Any) -> None:
    """Prepares the builder's data unless it is there; one process at a time does it, others wait."""
    target = pathlib.Path(builder.data_dir)
    if target.is_dir():
        return
    console = Console(stderr=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / ".lock", console):
            if not target.is_dir():
                # What a killed preparation left behind; under the lock nobody is writing there.
                for rest in target.parent.glob("incomplete.*"):
                    shutil.rmtree(rest, ignore_errors=True)
                _prepare(builder, target, console)
    except OSError as error:
        raise JaxsegError(
            f"{builder.name}: preparing the data in {target.parent} failed: {error}. "
            "Make room or rights there, or choose another folder with config.data.data_dir."
        ) from error
    builder.info.read_from_directory(builder.data_dir)


def _prepare(builder: Any, target: pathlib.Path, console: Console) -> None:
    console.print(f"Preparing {builder.name} in {target} (once).", highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="scratch.", dir=target.parent) as scratch:
        # TFDS prints to stdout, which belongs to the program that uses us.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.prepare_with_progress(console, pathlib.Path(scratch))
    for split, report in builder.info.metadata["splits"].items():
        if report["skipped"]:
            console.print(f"{builder.name} {split}: left out {len(report['skipped'])} bad examples:", highlight=False)
            for line in report["skipped"]:
                console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)


@contextlib.contextmanager
def _locked(path: pathlib.Path, console: Console) -> Iterator[None]:
    with path.open("a") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                console.print("Another process is preparing this data; waiting for it.", highlight=False)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Records:
    """One prepared split: random access to encoded examples. Cheap to pickle; files open on first use."""

    def __init__(self, directory: str | os.PathLike, split: str, length: int) -> None:
        self.directory = os.fspath(directory)
        self.split = split
        self._length = length
        self._source: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_source": None}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, bytes]:
        """`name`, `image` and `label` of one example, encoded."""
        if not 0 <= index < self._length:
            raise IndexError(f"example {index} of {self._length} in split {self.split!r}")
        if self._source is None:
            self._source = _open_source(self.directory, self.split)
        return self._source[index]


def _open_source(directory: str, split: str) -> Any:
    import tensorflow_datasets as tfds  # slow, and only who reads records needs it

    skip = {"image": tfds.decode.SkipDecoding(), "label": tfds.decode.SkipDecoding()}
    return tfds.builder_from_directory(directory).as_data_source(split, decoders=skip)


class Split:
    """One split, possibly several prepared ones in a row; decodes on access.

    `split[i]` is `{"image": uint8 [h, w, 3], "label": int32 [h, w], "name": str}`.
    """

    def __init__(self, parts: tuple[Records, ...]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def _encoded(self, index: int) -> dict[str, bytes]:
        index = range(len(self))[index]
        for part in self.parts:
            if index < len(part):
                break
            index -= len(part)
        return part[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Example `index`, decoded.

        Raises:
          BadExampleError: the prepared bytes no longer decode; the message names the example.
        """
        encoded = self._encoded(index)
        name = encoded["name"].decode()
        image = decode.decode_image(encoded["image"], name=name)
        label = decode.decode_label(encoded["label"], name=name)
        return {"image": image, "label": label.astype(np.int32), "name": name}

    def name_of(self, index: int) -> str:
        """What example `index` is called, for messages."""
        return self._encoded(index)["name"].decode()


class Dataset:
    """An open data set.

    Attributes:
      info: the data set's facts.
      directory: where the prepared data lies.
    """

    def __init__(self, info: DatasetInfo, directory: str | os.PathLike) -> None:
        self.info = info
        self.directory = pathlib.Path(directory)
        self._metadata = json.loads((self.directory / "metadata.json").read_text())
        described = json.loads((self.directory / "dataset_info.json").read_text())
        self._lengths = {s["name"]: sum(int(n) for n in s["shardLengths"]) for s in described["splits"]}

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, joined ones included."""
        return (*(s for s in self._lengths if not s.startswith("_")), *self._metadata["joined"])

    def _parts(self, name: str) -> tuple[str, ...]:
        if name in self._metadata["joined"]:
            return tuple(self._metadata["joined"][name])
        if name in self._lengths:
            return (name,)
        if name in self._metadata["absent"]:
            raise JaxsegError(f"{self.info.name} has no split {name!r} here: {self._metadata['absent'][name]}")
        raise JaxsegError(f"{self.info.name} has no split {name!r}. {close_matches(name, self.splits)}")

    def split(self, name: str) -> Split:
        """Random access to a split.

        Raises:
          JaxsegError: no such split; says why, or lists the close matches.
        """
        return Split(tuple(Records(self.directory, part, self._lengths[part]) for part in self._parts(name)))

    def max_size(self, split: str) -> tuple[int, int]:
        """Largest height and largest width among the split's images (not necessarily of one image)."""
        sizes = [self._metadata["splits"][part]["max_size"] for part in self._parts(split)]
        return max(h for h, _ in sizes), max(w for _, w in sizes)

    def skipped(self, split: str) -> list[str]:
        """What was left out of the split because it was bad, one message each."""
        return [line for part in self._parts(split) for line in self._metadata["splits"][part]["skipped"]]

    def foreign_labels(self, split: str) -> tuple[int, dict[str, list[int]]]:
        """How many examples hold label values that are neither class nor void; names and values of the first ones."""
        reports = [self._metadata["splits"][part] for part in self._parts(split)]
        named = {name: values for report in reports for name, values in report["foreign"].items()}
        return sum(report["foreign_count"] for report in reports), named
