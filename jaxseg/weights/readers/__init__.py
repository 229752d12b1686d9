"""Files of arrays as others write them: PyTorch (.pth, .pt), safetensors, .npz; told apart by content."""

import pathlib
import zipfile
from collections.abc import Callable

import numpy as np

from jaxseg.core.errors import JaxsegError
from jaxseg.weights.readers.npz import read_npz
from jaxseg.weights.readers.safetensors_file import looks_like_safetensors, read_safetensors
from jaxseg.weights.readers.torch_legacy import MAGIC, read_torch_legacy
from jaxseg.weights.readers.torch_zip import read_torch_zip

KINDS = "PyTorch (.pth, .pt), .safetensors and .npz"


def read_arrays(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The named arrays of a file, whatever it is called; nothing in it is ever executed.

    A PyTorch checkpoint may hold more than a state dict: where a dictionary `state_dict`, `model` or the like holds the
    tensors, they are taken from there. `module.` and `_orig_mod.`, which wrappers put before every name, are cut off.
    bfloat16 becomes float32, exactly.

    Args:
      path: a PyTorch file (zip format, or the format before PyTorch 1.6), .safetensors or .npz.

    Returns:
      name -> array on the host, in the file's own layout, possibly a read-only view.

    Raises:
      JaxsegError: no such file, another kind of file, damaged, or one that asks for code to be run.
    """
    path = pathlib.Path(path)
    return reader_of(path)(path)


def reader_of(path: pathlib.Path) -> Callable[[pathlib.Path], dict[str, np.ndarray]]:
    """The reader that a file's first bytes ask for."""
    head = _head(path)
    if head.startswith(MAGIC):
        return read_torch_legacy
    if head.startswith(b"PK\x03\x04"):
        return read_torch_zip if _has_pickle(path) else read_npz
    if looks_like_safetensors(head):
        return read_safetensors
    if head[257:262] == b"ustar":
        raise JaxsegError(f"{path} is a tar archive. Unpack it first, or save the weights with a newer PyTorch.")
    if head.startswith(b"\x80"):
        raise JaxsegError(
            f"{path} is a plain pickle, which could run any code, and not a PyTorch file. Nothing was executed. "
            "Save its arrays with numpy.savez."
        )
    raise JaxsegError(f"{path} is no file of weights that jaxseg knows. It reads {KINDS}.")


def _head(path: pathlib.Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(512)
    except FileNotFoundError:
        raise JaxsegError(f"{path}: no such file (config.weights.path).") from None
    except OSError as error:
        raise JaxsegError(f"{path} cannot be read: {error.strerror} (config.weights.path).") from None


def _has_pickle(path: pathlib.Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith((".pkl", "/byteorder")) for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise JaxsegError(f"{path} cannot be read as a PyTorch file or .npz: {error}. It may be cut off.") from error
