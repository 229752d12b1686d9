"""From bytes to pixels: images as 8-bit RGB, labels as class ids. What cannot be used is named, never guessed at.

Two ways of reading: `read_image` and `read_label` take whatever people have and check it thoroughly (Pillow);
`decode_image` and `decode_label` take only what `canonical_image` and `canonical_label` let into prepared data sets,
and are fast (OpenCV).
"""

import contextlib
import io
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxseg.core import files
from jaxseg.core.errors import BadExampleError
from jaxseg.core.types import DatasetInfo

Source = bytes | str | os.PathLike
MAX_PIXELS = 2**26
"""An image of more pixels is refused before it is decoded (8192 x 8192); a few bytes of PNG can claim 4 GB."""
TOO_LARGE = "Cut it into smaller pictures; where you trust the file, --mode=predict takes more with --max_pixels."
STRIP_PIXELS = 2**22
ORIENTATION_TAG = 0x0112
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")

_Result = TypeVar("_Result")


def read_image(source: Source, *, name: str = "", max_pixels: int | None = None) -> np.ndarray:
    """Any picture as 8-bit RGB, the way a viewer shows it.

    Grey and palette become RGB; CMYK is converted; transparency is composited over white; of 16 bits the high byte
    stays (`v >> 8`), without stretching; the EXIF orientation is applied; of several frames the first is taken.

    Args:
      source: encoded bytes, or a path.
      name: how messages call it; default: the path.
      max_pixels: what is refused before it is decoded, where a caller trusts its files; default: MAX_PIXELS.

    Returns:
      uint8 `[h, w, 3]`, contiguous.

    Raises:
      BadExampleError: missing, empty, truncated, not an image, too large, or of a kind without 8-bit meaning (float).
    """
    data, name = _bytes_of(source, name)
    return _guarded(data, name, _rgb, max_pixels=max_pixels)


def read_label(source: Source, *, name: str = "") -> np.ndarray:
    """A label picture as class ids: the palette index or the grey value, 8 or 16 bits, never colours.

    Args:
      source: encoded bytes, or a path.
      name: how messages call it; default: the path.

    Returns:
      int32 `[h, w]`.

    Raises:
      BadExampleError: as read_image, and colour (RGB) or JPEG labels: neither holds class ids.
    """
    data, name = _bytes_of(source, name)
    return _guarded(data, name, lambda image: _ids(image, data, name))


def canonical_image(data: bytes, *, name: str) -> tuple[bytes, tuple[int, int]]:
    """Checks an image thoroughly and returns bytes that decode alike everywhere, and (h, w).

    8-bit grey or RGB as JPEG or PNG without EXIF orientation or transparency stays byte for byte; anything else is
    written anew as RGB PNG.
    """

    def check(image: Image.Image) -> tuple[bytes, tuple[int, int]]:
        plain = image.format in ("JPEG", "PNG") and image.mode in ("L", "RGB") and getattr(image, "n_frames", 1) == 1
        plain = plain and "transparency" not in image.info and image.getexif().get(ORIENTATION_TAG, 1) == 1
        # Pillow shows 16-bit RGB as 8-bit RGB; the file's header knows better.
        plain = plain and (image.format == "JPEG" or data[24] == 8)
        pixels = _rgb(image)
        return (data if plain else encode_png(pixels)), (pixels.shape[0], pixels.shape[1])

    return _guarded(data, name, check)


def canonical_label(data: bytes, *, name: str) -> tuple[bytes, np.ndarray]:
    """Checks a label picture and returns a grey PNG of its ids (8 bits, 16 where an id needs them), and the ids."""
    ids = read_label(data, name=name)
    return encode_label(ids, name=name), ids


def decode_image(data: bytes, *, name: str) -> np.ndarray:
    """What canonical_image let through, as uint8 `[h, w, 3]` RGB."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
    if image is None:
        raise BadExampleError(
            f"{name}: the prepared image no longer decodes; delete the prepared data and start again."
        )
    return image


def decode_label(data: bytes, *, name: str) -> np.ndarray:
    """What canonical_label let through, as uint8 or uint16 `[h, w]` ids."""
    label = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if label is None or label.ndim != 2:
        raise BadExampleError(
            f"{name}: the prepared label no longer decodes; delete the prepared data and start again."
        )
    return label


def encode_png(pixels: np.ndarray) -> bytes:
    """PNG of uint8 `[h, w, 3]` RGB, or uint8 / uint16 `[h, w]` grey."""
    ordered = np.ascontiguousarray(pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    return cv2.imencode(".png", ordered)[1].tobytes()


def encode_label(ids: np.ndarray, *, name: str = "label") -> bytes:
    """Grey PNG of integer `[h, w]` ids in 0..65535, 8 bits where that is enough."""
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) <= 65535:
        raise BadExampleError(f"{name}: label ids {ids.min()}..{ids.max()} do not fit a PNG; it holds 0..65535.")
    return encode_png(ids.astype(np.uint8 if not ids.size or ids.max() < 256 else np.uint16))


def encode_palette(ids: np.ndarray, info: DatasetInfo, *, name: str = "label") -> bytes:
    """Palette PNG of integer `[h, w]` ids in 0..255, in the data set's colours."""
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) <= 255:
        raise BadExampleError(f"{name}: a palette PNG holds ids 0..255, not {ids.min()}..{ids.max()}.")
    palette = np.zeros((256, 3), np.uint8)
    palette[: info.num_classes] = info.colors
    if 0 <= info.void < 256:
        palette[info.void] = info.void_color
    picture = Image.fromarray(ids.astype(np.uint8)).convert("P")
    picture.putpalette(palette.tobytes())
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def write_label_png(path: str | os.PathLike, ids: np.ndarray, info: DatasetInfo | None = None) -> None:
    """Writes ids as a PNG: with the data set's palette where `info` is given (ids 0..255), else grey.

    Args:
      path: file to write; it appears whole or not at all.
      ids: integers `[h, w]`.
      info: whose colours and void colour the palette holds; read_label gives back the ids all the same.
    """
    data = encode_label(ids, name=str(path)) if info is None else encode_palette(ids, info, name=str(path))
    files.write_bytes(path, data)


def _bytes_of(source: Source, name: str) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        data, name = source, name or "image bytes"
    else:
        name = name or os.fspath(source)
        try:
            data = pathlib.Path(source).read_bytes()
        except OSError as error:
            raise BadExampleError(
                f"{name}: cannot be read ({error.strerror}). Check that the file is there."
            ) from error
    return data, name


def _guarded(
    data: bytes, name: str, use: Callable[[Image.Image], _Result], *, max_pixels: int | None = None
) -> _Result:
    """Opens `data` with Pillow and calls `use`; every way in which that can fail becomes a BadExampleError."""
    if not data:
        raise BadExampleError(f"{name}: the file is empty (0 bytes). Copy it anew, or leave it out of the list.")
    max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
    try:
        with _pillow_allows(max_pixels), Image.open(io.BytesIO(data)) as image:
            _check_size(image.width, image.height, name, max_pixels)
            return use(image)
    except BadExampleError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadExampleError(f"{name}: more than {max_pixels} pixels. {TOO_LARGE}") from error
    except UnidentifiedImageError as error:
        raise BadExampleError(
            f"{name}: not an image that Pillow knows (begins with {data[:8]!r}). Convert it to PNG or JPEG."
        ) from error
    # Broken files make decoders fail in many ways: OSError for truncation, SyntaxError for a broken PNG, ValueError ...
    except Exception as error:
        raise BadExampleError(
            f"{name}: damaged or truncated ({len(data)} bytes; {error}). Copy it anew, or leave it out of the list."
        ) from error


@contextlib.contextmanager
def _pillow_allows(max_pixels: int) -> Iterator[None]:
    """Pillow's own limit, 2^26.4 pixels, raised where a caller asks for more; `_check_size` is what then protects."""
    before = Image.MAX_IMAGE_PIXELS
    if before is not None and max_pixels > before:
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width < 1 or height < 1 or width * height > max_pixels:
        raise BadExampleError(f"{name}: {width}x{height} pixels; it must have 1 to {max_pixels}. {TOO_LARGE}")


def _rgb(image: Image.Image) -> np.ndarray:
    image.load()
    upright: Any = ImageOps.exif_transpose(image) if image.getexif().get(ORIENTATION_TAG, 1) != 1 else image
    if upright.mode in (*SIXTEEN_BIT_MODES, "I"):
        values = np.asarray(upright).astype(np.int64)
        if values.size and not 0 <= values.min() <= values.max() <= 65535:
            raise ValueError(
                f"32-bit values {values.min()}..{values.max()} have no 8-bit meaning; convert it to 8 bits"
            )
        return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    if upright.mode == "F":
        raise ValueError("float pixels have no 8-bit meaning; convert it to 8 bits")
    if "A" in upright.mode or "a" in upright.mode or "transparency" in upright.info:
        over = Image.new("RGBA", upright.size, (255, 255, 255, 255))
        over.alpha_composite(upright.convert("RGBA"))
        upright = over
    rgb = upright if upright.mode == "RGB" else upright.convert("RGB")
    # In strips: Pillow hands over an image as two copies of its bytes, of which a large one has hundreds of millions.
    pixels = np.empty((rgb.height, rgb.width, 3), np.uint8)
    step = max(1, STRIP_PIXELS // rgb.width)
    for top in range(0, rgb.height, step):
        pixels[top : top + step] = np.asarray(rgb.crop((0, top, rgb.width, min(top + step, rgb.height))))
    return pixels


def _ids(image: Image.Image, data: bytes, name: str) -> np.ndarray:
    if image.format == "JPEG":
        raise BadExampleError(f"{name}: a JPEG label; its compression changes class ids. Save labels as PNG.")
    if image.mode not in ("P", "L", "1", "I", *SIXTEEN_BIT_MODES):
        raise BadExampleError(
            f"{name}: a label in colours (mode {image.mode}); labels hold class ids, as palette index or grey value. "
            "Map its colours to ids and save it as a grey or palette PNG."
        )
    image.load()
    upright: Any = ImageOps.exif_transpose(image) if image.getexif().get(ORIENTATION_TAG, 1) != 1 else image
    ids = np.array(upright).astype(np.int32)
    # Decoders stretch grey of 2 and 4 bits to 0..255; the ids are what the file holds.
    if image.format == "PNG" and data[25] == 0 and data[24] in (2, 4):
        ids //= 85 if data[24] == 2 else 17
    return ids
