"""PyTorch's files since 1.6: an uncompressed zip with `data.pkl`, `byteorder` and one record `data/<key>` a storage."""

import pathlib
import zipfile
from typing import Any

import numpy as np

from jaxseg.core.errors import JaxsegError
from jaxseg.weights.readers.safe_pickle import load_pickle
from jaxseg.weights.readers.tensors import Storage, decode, item_size
from jaxseg.weights.readers.torch_pickle import NAMES, arrays_of, state_dict, storage_of


def read_torch_zip(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch file in zip format.

    Raises:
      JaxsegError: damaged; compressed, encrypted or overlapping records (PyTorch writes none: a zip bomb); a record's
        name that leaves the archive; a pickle that asks for more than tensors; no single state dict.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _Records(path, archive).arrays()
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError) as error:
        raise JaxsegError(f"{path} cannot be read as a PyTorch file: {error}. It may be cut off.") from error


class _Records:
    """The records of one archive below its root folder."""

    def __init__(self, path: pathlib.Path, archive: zipfile.ZipFile):
        self.path = path
        self.archive = archive
        self.entries = {entry.filename: entry for entry in archive.infolist()}
        self._check()
        pickles = [name for name in self.entries if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise JaxsegError(f"{path} is a zip archive, but not of PyTorch: it has {len(pickles)} records data.pkl.")
        self.root = pickles[0].removesuffix("data.pkl")
        self.big_endian = self._byte_order() == "big"

    def _check(self) -> None:
        for name, entry in self.entries.items():
            if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
                raise JaxsegError(f"{self.path}: the record {name!r} leaves the archive. It is not read.")
            if entry.flag_bits & 1 or entry.compress_type != zipfile.ZIP_STORED:
                raise JaxsegError(
                    f"{self.path}: the record {name!r} is compressed or encrypted, which PyTorch's are not. "
                    "It is not read; unpack it and store it plainly (zip -0)."
                )
        total, there = sum(entry.file_size for entry in self.entries.values()), self.path.stat().st_size
        if total > there:
            raise JaxsegError(f"{self.path} has {there} bytes and would unpack to {total}. It is not read.")

    def _byte_order(self) -> str:
        # Files of before PyTorch 2.1 do not say; they were written on little-endian machines.
        order = self._read("byteorder").decode("ascii") if self.root + "byteorder" in self.entries else "little"
        if order not in ("little", "big"):
            raise JaxsegError(f"{self.path}: the byte order is {order[:20]!r}, neither little nor big.")
        return order

    def _read(self, name: str) -> bytes:
        if self.root + name not in self.entries:
            raise JaxsegError(f"{self.path} has no record {name!r}, which its pickle names. It is damaged.")
        return self.archive.read(self.root + name)

    def arrays(self) -> dict[str, np.ndarray]:
        root = load_pickle(
            self._read("data.pkl"), names=NAMES, persistent=_storage, where=f"{self.path} (record data.pkl)"
        )
        return arrays_of(state_dict(root, path=str(self.path)), self._values, path=str(self.path))

    def _values(self, storage: Storage) -> np.ndarray:
        data, needed = self._read(f"data/{storage.key}"), storage.size * item_size(storage.dtype)
        if len(data) < needed:
            raise JaxsegError(f"{self.path}: the record data/{storage.key} has {len(data)} of {needed} bytes.")
        return decode(memoryview(data)[:needed], storage.dtype, big_endian=self.big_endian)


def _storage(identity: Any) -> Storage:
    storage, view = storage_of(identity)
    if view is not None:
        raise ValueError("a view of a storage, which this format does not have")
    return storage
