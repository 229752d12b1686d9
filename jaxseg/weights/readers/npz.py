"""`.npz` files of plain arrays."""

import pathlib
import zipfile
import zlib

import numpy as np

from jaxseg.core.errors import JaxsegError

MAX_BYTES = 16 * 2**30
"""More than any weights; an archive that unpacks to more is a bomb."""


def read_npz(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; pickled objects in it are refused.

    Raises:
      JaxsegError: no such file, not an .npz file, truncated, encrypted or compressed as NumPy does not, larger than
        `MAX_BYTES` when unpacked, or with pickled objects.
    """
    try:
        # Opened here: where the archive is broken, np.load leaves the file that it opened itself open.
        with open(path, "rb") as file:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as listing:
                    _check(path, listing)
            file.seek(0)
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise JaxsegError(f"{path} is not an .npz file of named arrays.")
            with archive:
                arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise JaxsegError(f"{path}: no such file (config.weights.path).") from None
    except (OSError, ValueError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise JaxsegError(f"{path} cannot be read as an .npz file of plain arrays: {error}") from error
    wrong = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if wrong:
        raise JaxsegError(f"{path} is not an .npz file of arrays: it holds {wrong[0]!r}.")
    return arrays


def _check(path: str | pathlib.Path, archive: zipfile.ZipFile) -> None:
    for entry in archive.infolist():
        if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise JaxsegError(
                f"{path}: {entry.filename!r} is encrypted or compressed as NumPy does not. The file may be damaged; "
                "otherwise write it anew with numpy.savez."
            )
    total = sum(entry.file_size for entry in archive.infolist())
    if total > MAX_BYTES:
        raise JaxsegError(f"{path} would unpack to {total / 2**30:.0f} GiB, more than any weights. It is not read.")
