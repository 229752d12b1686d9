"""Label maps as colours, over the image, and as palette PNGs."""

import io
import os

import numpy as np
from PIL import Image

from jaxseg.core.errors import JaxsegError
from jaxseg.core.files import write_bytes
from jaxseg.core.types import DatasetInfo


def colorize(label: np.ndarray, info: DatasetInfo) -> np.ndarray:
    """Every pixel in the colour of its class; void in `info.void_color`.

    Args:
      label: integers `[*b, h, w]`, class ids and `info.void`.
      info: gives the colours.

    Returns:
      uint8 `[*b, h, w, 3]`, RGB.

    Raises:
      TypeError: the label is not of an integer type.
      JaxsegError: a value is neither a class id nor void.
    """
    label = _checked(label, info)
    colors = np.asarray([*info.colors, info.void_color], np.uint8)
    return colors[np.where(label == info.void, info.num_classes, label)]


def overlay(image: np.ndarray, label: np.ndarray, info: DatasetInfo, alpha: float = 0.5) -> np.ndarray:
    """`(1 - alpha) * image + alpha * colour` where the pixel has a class; void pixels show the image as it is.

    Args:
      image: uint8 `[*b, h, w, 3]`, RGB.
      label: integers `[*b, h, w]`, class ids and `info.void`.
      info: gives the colours.
      alpha: share of the class colour, 0..1.

    Returns:
      uint8 `[*b, h, w, 3]`, rounded to the nearest.

    Raises:
      ValueError: image and label differ in size, or alpha is outside 0..1.
      JaxsegError: a value is neither a class id nor void.
    """
    image = np.asarray(image)
    label = np.asarray(label)
    if image.dtype != np.uint8 or image.shape != (*label.shape, 3):
        raise ValueError(f"image {image.dtype} {image.shape} does not fit the label's shape {label.shape}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in 0..1, not {alpha}")
    mixed = (1 - alpha) * image.astype(np.float32) + alpha * colorize(label, info).astype(np.float32)
    return np.where((label == info.void)[..., None], image, np.rint(mixed).astype(np.uint8))


def save_palette_png(path: str | os.PathLike[str], label: np.ndarray, info: DatasetInfo) -> None:
    """Writes a label map the way PASCAL VOC does: pixel value = class id, the palette holds the colours.

    Args:
      path: the file; written whole or not at all.
      label: integers `[h, w]`, class ids and `info.void`, all in 0..255.
      info: gives the palette.

    Raises:
      JaxsegError: a value is neither a class id nor void, or does not fit 8 bits.
    """
    write_bytes(path, palette_png(label, info))


def palette_png(label: np.ndarray, info: DatasetInfo) -> bytes:
    """The PNG file that `save_palette_png` writes, as bytes; same arguments."""
    picture = Image.fromarray(palette_indices(label, info))
    picture.putpalette(palette(info).tobytes(), "RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def palette(info: DatasetInfo) -> np.ndarray:
    """The colours of the classes and of void, uint8 `[256, 3]`; black where there is none."""
    table = np.zeros((256, 3), np.uint8)
    colors = info.colors[:256]
    table[: len(colors)] = np.asarray(colors, np.uint8)
    if 0 <= info.void <= 255:
        table[info.void] = info.void_color
    return table


def palette_indices(label: np.ndarray, info: DatasetInfo) -> np.ndarray:
    """The label as uint8 `[h, w]`; same argument and errors as `save_palette_png`."""
    label = _checked(label, info)
    if label.ndim != 2:
        raise ValueError(f"a palette PNG takes a label [h, w], not one of shape {label.shape}")
    if label.size and (label.min() < 0 or label.max() > 255):
        raise JaxsegError(
            f"{info.name}: label values up to {label.max()} do not fit a palette PNG, which has 256 colours; "
            "save the array itself instead."
        )
    return label.astype(np.uint8)


def _checked(label: np.ndarray, info: DatasetInfo) -> np.ndarray:
    """The label as an array whose values are all class ids or void."""
    label = np.asarray(label)
    if not np.issubdtype(label.dtype, np.integer):
        raise TypeError(f"labels must be integers, not {label.dtype}")
    wrong = np.unique(label[((label < 0) | (label >= info.num_classes)) & (label != info.void)])
    if wrong.size:
        raise JaxsegError(
            f"{info.name}: the label map holds {wrong[:8].tolist()}; it takes the class ids "
            f"0..{info.num_classes - 1} and void, {info.void}."
        )
    return label
