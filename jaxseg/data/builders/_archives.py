"""Unpacks archives that come from elsewhere; nothing can land outside the folder it is unpacked into."""

import hashlib
import pathlib
import tarfile
from collections.abc import Callable

from jaxseg.core.errors import JaxsegError


def extract(archive: pathlib.Path, into: pathlib.Path, *, wanted: Callable[[str], bool]) -> pathlib.Path:
    """Unpacks the members of a tar file (.tar, .tgz) whose name is wanted.

    Args:
      archive: the file.
      into: an existing folder.
      wanted: takes a member's name, for example `VOCdevkit/VOC2012/JPEGImages/2007_000027.jpg`.

    Returns:
      `into`.

    Raises:
      JaxsegError: not a tar file, truncated, or with members that would leave the folder.
    """
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                # The data filter refuses absolute names, names with .. that lead outside, links out, and devices.
                if wanted(member.name.removeprefix("./")) and (member.isfile() or member.isdir()):
                    tar.extract(member, into, filter="data")
                elif _leaves(member):
                    raise JaxsegError(
                        f"{archive}: the member {member.name!r} would leave the folder. Do not use this file."
                    )
    except tarfile.FilterError as error:
        raise JaxsegError(f"{archive}: a member would leave the folder ({error}). Do not use this file.") from error
    except (tarfile.TarError, EOFError, OSError) as error:
        raise JaxsegError(f"{archive}: not a whole tar archive ({error}). Fetch it anew.") from error
    return into


def _leaves(member: tarfile.TarInfo) -> bool:
    parts = pathlib.PurePosixPath(member.name).parts
    return member.name.startswith("/") or ".." in parts


def check_md5(path: pathlib.Path, expected: str) -> None:
    """Raises JaxsegError where the file's MD5, the sum its publisher or the usual tools state, is another one."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != expected:
        raise JaxsegError(
            f"{path}: MD5 {found}, expected {expected}; the download is not the file. Delete and fetch anew."
        )
