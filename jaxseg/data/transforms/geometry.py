"""Random scale, crop with padding and flip as one geometry: sampled once, applied to every field alike.

The scaled image is never computed as a whole: only the pixels of the crop are, by one warp. Coordinates follow the
half-pixel convention, `source + 1/2 = (scaled + 1/2) * size / scaled_size`, for images and labels alike, so that a
label stays on its pixel.
"""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from jaxseg.core.errors import JaxsegError


@dataclasses.dataclass(frozen=True)
class Geometry:
    """One sampled scale, crop and flip.

    Attributes:
      size: (h, w) of the input.
      scaled: (h, w) after scaling, before the crop.
      offset: (y, x) of the crop's upper left corner in the scaled image; negative where padding comes first.
      crop: (h, w) of the output.
      flip: whether the crop is mirrored left to right.
    """

    size: tuple[int, int]
    scaled: tuple[int, int]
    offset: tuple[int, int]
    crop: tuple[int, int]
    flip: bool

    @property
    def inside(self) -> tuple[slice, slice]:
        """Rows and columns of the crop that show the image; the rest is padding. Before the flip."""
        rows, cols = (
            slice(max(0, -o), min(c, n - o)) for o, c, n in zip(self.offset, self.crop, self.scaled, strict=True)
        )
        return rows, cols


def check_options(crop_size_px: Sequence[int], scale_range: Sequence[float], flip_probability: float) -> None:
    """Raises JaxsegError where the config's values make no geometry."""
    if len(crop_size_px) != 2 or min(crop_size_px) < 1:
        raise JaxsegError(
            f"config.data.crop_size_px = {tuple(crop_size_px)}: give two positive numbers (height, width)."
        )
    if len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1]:
        raise JaxsegError(f"config.data.scale_range = {tuple(scale_range)}: give (low, high) with 0 < low <= high.")
    if not 0 <= flip_probability <= 1:
        raise JaxsegError(f"config.data.flip_probability = {flip_probability}: give a number between 0 and 1.")


def sample_geometry(
    rng: np.random.Generator,
    size: tuple[int, int],
    *,
    crop_size_px: Sequence[int],
    scale_range: Sequence[float] = (1.0, 1.0),
    flip_probability: float = 0.0,
) -> Geometry:
    """Draws scale, crop position and flip; always the same number of draws, whatever they turn out to be.

    `scale ~ U(low, high)`, `scaled = max(1, round(size * scale))`, and along each axis
    `offset ~ U{min(0, scaled - crop), ..., max(0, scaled - crop)}`: a crop larger than the image holds all of it, at a
    random place within the padding.

    Args:
      rng: the example's own generator.
      size: (h, w) of the input in pixels.
      crop_size_px: (h, w) of the output in pixels.
      scale_range: low and high of the scale.
      flip_probability: probability of a left-right flip, 0..1.

    Returns:
      the geometry.
    """
    scale = rng.uniform(scale_range[0], scale_range[1])
    place_y, place_x, coin = rng.random(3)
    scaled = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    crop = int(crop_size_px[0]), int(crop_size_px[1])
    offset_y, offset_x = (
        min(0, n - c) + int(place * (abs(n - c) + 1))
        for place, n, c in zip((place_y, place_x), scaled, crop, strict=True)
    )
    return Geometry((size[0], size[1]), scaled, (offset_y, offset_x), crop, bool(coin < flip_probability))


def warp_image(image: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The visible part of the crop, `crop[geometry.inside]`, by bilinear interpolation, not yet flipped.

    Equal, within one grey level, to `cv2.resize(image, scaled, INTER_LINEAR)` and slicing; edges are replicated.

    Args:
      image: `[h, w, c]` uint8 or float32.
      geometry: where to look.

    Returns:
      `[h', w', c]`, the image's dtype.
    """
    rows, cols = geometry.inside
    if geometry.scaled == geometry.size:
        y, x = rows.start + geometry.offset[0], cols.start + geometry.offset[1]
        return image[y : y + rows.stop - rows.start, x : x + cols.stop - cols.start]
    step_y, step_x = (n / m for n, m in zip(geometry.size, geometry.scaled, strict=True))
    first_y, first_x = rows.start + geometry.offset[0], cols.start + geometry.offset[1]
    matrix = np.array(
        [[step_x, 0, (first_x + 0.5) * step_x - 0.5], [0, step_y, (first_y + 0.5) * step_y - 0.5]], np.float64
    )
    return cv2.warpAffine(
        image,
        matrix,
        (cols.stop - cols.start, rows.stop - rows.start),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def place(part: np.ndarray, geometry: Geometry, fill: np.ndarray | float) -> np.ndarray:
    """Puts the visible part into the crop, pads the rest with `fill` and flips.

    Args:
      part: `[h', w', *c]`, what warp_image or warp_nearest returned.
      geometry: the same as theirs.
      fill: value of the padding, one number or one per channel.

    Returns:
      contiguous `[crop h, crop w, *c]`, the part's dtype.
    """
    out = np.empty((*geometry.crop, *part.shape[2:]), part.dtype)
    if part.shape[:2] != geometry.crop:
        out[...] = fill
    view = out[:, ::-1] if geometry.flip else out
    view[geometry.inside] = part
    return out


def _nearest(offset: int, span: slice, size: int, scaled: int) -> np.ndarray:
    """Source index of every visible position: `floor((position + 1/2) * size / scaled)`, in whole numbers, so exact."""
    position = np.arange(span.start, span.stop, dtype=np.int64) + offset
    return (2 * position + 1) * size // (2 * scaled)


def warp_nearest(values: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The visible part of the crop by nearest neighbour, aligned with warp_image. Labels and their weights.

    Args:
      values: `[h, w, *c]`, any dtype.
      geometry: where to look.

    Returns:
      `[h', w', *c]`, the values' dtype; only values of the input occur.
    """
    rows, cols = geometry.inside
    y = _nearest(geometry.offset[0], rows, geometry.size[0], geometry.scaled[0])
    x = _nearest(geometry.offset[1], cols, geometry.size[1], geometry.scaled[1])
    return values.take(y, axis=0).take(x, axis=1)


def move_points(points: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Where points of the input lie in the crop: `(p + 1/2) * scaled / size - 1/2 - offset`, then the flip.

    Args:
      points: float `[n, 2]`, (x, y) in pixels, whole numbers are pixel centres.
      geometry: the same as the image's.

    Returns:
      float32 `[n, 2]`; points may lie outside the crop.
    """
    ratio = np.array([geometry.scaled[1] / geometry.size[1], geometry.scaled[0] / geometry.size[0]])
    moved = (np.asarray(points, np.float64) + 0.5) * ratio - 0.5 - np.array(geometry.offset[::-1])
    if geometry.flip:
        moved[:, 0] = geometry.crop[1] - 1 - moved[:, 0]
    return moved.astype(np.float32)
