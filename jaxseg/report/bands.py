"""Pictures of a label map that comes in bands of rows: its palette PNG as it comes, and an overlay of bounded size."""

import contextlib
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np

from jaxseg.core.files import replacing
from jaxseg.core.types import DatasetInfo
from jaxseg.report.overlay import overlay, palette, palette_indices

JPEG_SIDE = 65_000
"""A JPEG's sides have 16 bits; libjpeg takes a little less."""


@contextlib.contextmanager
def palette_png_bands(
    path: str | os.PathLike[str], size: tuple[int, int], info: DatasetInfo
) -> Iterator[Callable[[np.ndarray], None]]:
    """Gives a function that adds integers `[n, w]` below what is there; the file appears at the end, or not at all.

    What it holds is what `jaxseg.report.overlay.save_palette_png` would write of all bands together.

    Args:
      path: the file.
      size: (height, width) of the whole picture.
      info: gives the palette.

    Raises:
      JaxsegError: a value is neither a class id nor void, or does not fit 8 bits.
      ValueError: a band of another width, or bands that do not add up to the height.
    """
    height, width = size
    rows = 0
    compressor = zlib.compressobj()
    with replacing(path) as file:

        def add(band: np.ndarray) -> None:
            nonlocal rows
            indices = palette_indices(band, info)
            rows += len(indices)
            if indices.shape[1] != width or rows > height:
                raise ValueError(f"a band {indices.shape} up to row {rows} does not fit a picture of {height}x{width}")
            # A row begins with the number of its filter: 0, none, as is usual for palettes.
            _chunk(file, b"IDAT", compressor.compress(np.pad(indices, ((0, 0), (1, 0))).tobytes()))

        file.write(b"\x89PNG\r\n\x1a\n")
        _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        _chunk(file, b"PLTE", palette(info).tobytes())
        yield add
        if rows != height:
            raise ValueError(f"{rows} rows of {height} were given")
        _chunk(file, b"IDAT", compressor.flush())
        _chunk(file, b"IEND", b"")


def _chunk(file: BinaryIO, kind: bytes, content: bytes) -> None:
    if content or kind == b"IEND":
        file.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))


class OverlayBands:
    """`jaxseg.report.overlay.overlay` of label bands; of every k-th pixel where the image has more than `max_pixels`.

    Attributes:
      step: k, 1 for images of up to `max_pixels`.
      picture: uint8 `[h', w', 3]`; whole when all bands have been added.
    """

    def __init__(self, image: np.ndarray, info: DatasetInfo, alpha: float, *, max_pixels: int) -> None:
        """Args: image: uint8 `[h, w, 3]`; info: gives the colours; alpha: share of the class colour; max_pixels."""
        self._image, self._info, self._alpha = image, info, alpha
        height, width = image.shape[:2]
        self.step = max(1, math.ceil(math.sqrt(height * width / max_pixels)), math.ceil(max(height, width) / JPEG_SIDE))
        self._rows, self._columns = (np.arange(min(self.step // 2, n // 2), n, self.step) for n in (height, width))
        self.picture = np.empty((len(self._rows), len(self._columns), 3), np.uint8)
        self._below = 0

    def add(self, band: np.ndarray) -> None:
        """Adds integers `[n, w]`, class ids and void, below what is there."""
        top, self._below = self._below, self._below + len(band)
        first, last = np.searchsorted(self._rows, (top, self._below))
        rows = self._rows[first:last]
        seen = self._image[rows][:, self._columns]
        self.picture[first:last] = overlay(seen, band[rows - top][:, self._columns], self._info, self._alpha)
