"""Raw bytes to arrays: dtypes by name, either byte order, strides over a storage."""

import dataclasses
import sys

import numpy as np

DTYPES = {
    "float64": "f8",
    "float32": "f4",
    "float16": "f2",
    "bfloat16": "u2",
    "int64": "i8",
    "int32": "i4",
    "int16": "i2",
    "int8": "i1",
    "uint8": "u1",
    "uint16": "u2",
    "uint32": "u4",
    "uint64": "u8",
    "bool": "?",
    "complex64": "c8",
    "complex128": "c16",
}
"""Name of a dtype -> NumPy's code of its bytes; bfloat16 is the upper half of a float32."""


def item_size(dtype: str) -> int:
    """Bytes of one value."""
    return np.dtype(DTYPES[dtype]).itemsize


def decode(data: bytes | bytearray | memoryview, dtype: str, *, big_endian: bool = False) -> np.ndarray:
    """The values in `data`, flat, in this machine's byte order; bfloat16 as float32, which holds it exactly."""
    code = np.dtype(DTYPES[dtype]).newbyteorder(">" if big_endian else "<")
    values = np.frombuffer(data, code)
    if big_endian != (sys.byteorder == "big"):
        values = values.astype(code.newbyteorder("="))
    if dtype == "bfloat16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of values in a file that one or more tensors look into.

    Attributes:
      key: its name in the file.
      dtype: one of `DTYPES`.
      size: number of values.
    """

    key: str
    dtype: str
    size: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage: element `[i, j, ..]` is value `offset + i stride[0] + j stride[1] + ..`.

    Attributes:
      storage: where the values lie.
      offset: of the first element, in values.
      shape: elements an axis.
      strides: in values.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, values: np.ndarray) -> np.ndarray:
        """The tensor as a read-only view of its storage's values.

        Raises:
          ValueError: it reaches beyond them.
        """
        numbers = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError(f"offset, shape and strides are {numbers}")
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if 0 not in self.shape and last >= values.size:
            raise ValueError(f"it reaches value {last} of {values.size}")
        strides = [s * values.itemsize for s in self.strides]
        start = values[min(self.offset, values.size) :]
        return np.lib.stride_tricks.as_strided(start, self.shape, strides, writeable=False)
