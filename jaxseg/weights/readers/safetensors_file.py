"""`.safetensors`: a JSON header and raw little-endian arrays; the package of that name checks the header."""

import pathlib
from typing import Any

import numpy as np
import safetensors

from jaxseg.core.errors import JaxsegError
from jaxseg.weights.readers.tensors import DTYPES, decode

NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BOOL": "bool",
    "C64": "complex64",
}


def looks_like_safetensors(head: bytes) -> bool:
    """The header's length in 8 bytes, then JSON."""
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors file; bfloat16 becomes float32.

    Raises:
      JaxsegError: truncated, a header that does not fit its data, or a dtype that NumPy does not have.
    """
    try:
        tensors: list[tuple[str, dict[str, Any]]] = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise JaxsegError(f"{path} cannot be read as a .safetensors file: {error}.") from error
    arrays = {}
    for name, tensor in tensors:
        dtype = NAMES.get(tensor["dtype"], tensor["dtype"])
        if dtype not in DTYPES:
            raise JaxsegError(f"{path}: {name} is of the type {dtype}, which jaxseg does not read.")
        arrays[name] = decode(tensor["data"], dtype).reshape(tensor["shape"])
    return arrays
