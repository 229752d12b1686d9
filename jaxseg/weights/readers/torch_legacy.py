"""PyTorch's files before 1.6: five pickles one after another, then the storages' raw values."""

import dataclasses
import pathlib
from typing import Any, BinaryIO

import numpy as np

from jaxseg.core.errors import JaxsegError
from jaxseg.weights.readers.safe_pickle import load_pickle
from jaxseg.weights.readers.tensors import Storage, Tensor, decode, item_size
from jaxseg.weights.readers.torch_pickle import NAMES, arrays_of, state_dict, storage_of

MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
"""The first pickle: protocol 2, the number 0x1950a86a20f9469cfc6c."""
PROTOCOL = 1001


def read_torch_legacy(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch file in the format before zip.

    The pickles are: magic number, protocol version, facts of the machine, the checkpoint, the storages' keys. Then for
    each key the number of values, 8 bytes, and the values.

    Raises:
      JaxsegError: damaged, of a big-endian machine, a pickle that asks for more than tensors, no single state dict.
    """
    with path.open("rb") as file:
        file.seek(len(MAGIC))
        return _File(path, file).arrays()


@dataclasses.dataclass(frozen=True)
class _View(Storage):
    """A storage that begins `offset` values into the one that the file holds under `key`."""

    offset: int = 0


class _File:
    """Reads the pickles and the raw values in their order."""

    def __init__(self, path: pathlib.Path, file: BinaryIO):
        self.path = path
        self.file = file
        self.sizes: dict[str, Storage] = {}

    def _pickle(self, what: str) -> Any:
        return load_pickle(
            self.file, names=NAMES, persistent=self._storage, where=f"{self.path} (the pickle of {what})"
        )

    def _storage(self, identity: Any) -> Storage:
        storage, view = storage_of(identity)
        known = self.sizes.setdefault(storage.key, storage)
        if known != storage:
            raise ValueError(f"two descriptions of the storage {storage.key}")
        if view is None:
            return storage
        _, offset, size = view
        if type(offset) is not int or offset < 0:
            raise ValueError(f"a view that begins at {type(offset).__name__}")
        return _View(storage.key, storage.dtype, size, offset)

    def arrays(self) -> dict[str, np.ndarray]:
        if self._pickle("the protocol's version") != PROTOCOL:
            raise JaxsegError(f"{self.path} is not of protocol {PROTOCOL}. Save it again with a newer PyTorch.")
        machine = self._pickle("the machine")
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise JaxsegError(f"{self.path} was written on a big-endian machine. Save it again with a newer PyTorch.")
        tensors = state_dict(self._pickle("the checkpoint"), path=str(self.path))
        values = self._values(self._pickle("the storages' keys"))
        placed = {name: _in_whole_storage(tensor) for name, tensor in tensors.items()}
        return arrays_of(placed, lambda storage: values[storage.key], path=str(self.path))

    def _values(self, keys: Any) -> dict[str, np.ndarray]:
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(self.sizes):
            raise JaxsegError(f"{self.path} lists other storages than its tensors use. It is damaged.")
        values = {}
        for key in keys:
            storage = self.sizes[key]
            size = int.from_bytes(self._read(8), "little")
            if size != storage.size:
                raise JaxsegError(f"{self.path}: the storage {key} has {size} values instead of {storage.size}.")
            values[key] = decode(self._read(size * item_size(storage.dtype)), storage.dtype)
        return values

    def _read(self, count: int) -> bytes:
        there = self.path.stat().st_size - self.file.tell()
        if count > there:
            raise JaxsegError(f"{self.path} is cut off: {count} bytes should follow, {there} are there.")
        return self.file.read(count)


def _in_whole_storage(tensor: Tensor) -> Tensor:
    """A tensor of a view as one of the whole storage."""
    if not isinstance(tensor.storage, _View):
        return tensor
    return dataclasses.replace(tensor, offset=tensor.offset + tensor.storage.offset)
