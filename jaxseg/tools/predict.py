"""`--mode=predict`: files, folders and videos to palette PNGs at the input's own size, and overlays."""

import dataclasses
import io
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cv2
import jax
import numpy as np
from PIL import Image

from jaxseg.core.errors import BadExampleError, JaxsegError
from jaxseg.core.files import write_bytes
from jaxseg.core.types import DatasetInfo
from jaxseg.data.decode import MAX_PIXELS, read_image
from jaxseg.inference.banded import BandedLabels, has_bands
from jaxseg.inference.predictor import Predictor
from jaxseg.report.bands import OverlayBands, palette_png_bands
from jaxseg.report.overlay import overlay, save_palette_png

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
OVERLAY_QUALITY = 92
OVERLAY_MAX_PIXELS = 2**24
"""Of an image with more pixels the overlay shows every k-th one, with the smallest k that keeps to it."""
WINDOW_HINT = "--config.evaluate.window_px='(513, 513)' with one scale and without flip"
TOLERATED_SHARE = 0.95
"""Some formats only estimate their number of frames; below this share of it a video counts as cut off."""
FRAMES_PER_LINE = 25
EXIT_CODE_FAILED_INPUTS = 2


@dataclasses.dataclass
class PredictionReport:
    """What was done.

    Attributes:
      images: number of images written.
      frames: number of video frames written.
      failed: one sentence for each input that could not be used.
    """

    images: int = 0
    frames: int = 0
    failed: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Input:
    """One file and where its results go: `<target>.png`, `<target>_overlay.jpg`, for a video the folder `<target>`."""

    path: pathlib.Path
    target: pathlib.Path


def predict_mode(
    config: Any,
    workdir: pathlib.Path,
    *,
    inputs: Sequence[str],
    output: pathlib.Path,
    checkpoint: str,
    max_pixels: int = MAX_PIXELS,
) -> int:
    """Predicts `inputs` with a checkpoint's weights into `output`; returns 0, or 2 where an input could not be used."""
    # The train package is needed for the checkpoint alone; predict_files does without.
    from jaxseg.tools.restore import restore_variables
    from jaxseg.train.run import make_run

    if jax.process_count() > 1:
        raise JaxsegError("--mode=predict runs in one process; leave out --coordinator and --distributed.")
    collect(inputs, output)
    run = make_run(config, open_data=False)
    variables, step = restore_variables(run, workdir, checkpoint)
    variables = jax.device_put(jax.device_get(variables), jax.local_devices()[0])
    print(f"Weights of step {step}.", flush=True)
    size = tuple(config.data.evaluate_size_px)
    report = predict_files(
        run.predictor,
        variables,
        run.info,
        inputs,
        output,
        size_px=size,
        max_pixels=max_pixels,
        progress=lambda done: print(done, flush=True),
    )
    print(f"{report.images} images and {report.frames} video frames written to {output}.")
    for sentence in report.failed:
        print(f"jaxseg: {sentence}", file=sys.stderr)
    if report.failed:
        print(f"jaxseg: {len(report.failed)} inputs could not be used; the others are done.", file=sys.stderr)
    return EXIT_CODE_FAILED_INPUTS if report.failed else 0


def predict_files(
    predictor: Predictor,
    variables: Any,
    info: DatasetInfo,
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    *,
    size_px: Sequence[int] = (),
    bucket_px: int = 1,
    max_pixels: int = MAX_PIXELS,
    alpha: float = 0.5,
    progress: Callable[[str], None] | None = None,
) -> PredictionReport:
    """Labels every input at its own size.

    An image `a/b.jpg` gives `b.png` (class ids, with the data set's palette) and `b_overlay.jpg`; a video `c.mp4` gives
    `c/000000.png`, ... a frame and `c_overlay.mp4`. Folders are searched with their subfolders, which the output keeps;
    hidden files, other kinds of files and `out_dir` itself are left alone. Inputs of one folder that would share a name
    keep their suffix: `b.jpg.png`. Every file appears whole or not at all.

    The labels are those of an evaluation: an image that fits into `size_px` is padded to it at the bottom and right
    with the mean pixel, as evaluation does. Others are predicted at just their size, so that nothing but the image
    decides; each new size is compiled anew. For many sizes `bucket_px` pads to multiples, which may change labels a
    little. An image's size is the one that a viewer shows, after the rotation that its EXIF data asks for.

    In windows, at one scale and not mirrored, labels come in bands of rows and are written as they come: beside the
    image (3 bytes a pixel, 7 while it is decoded) the memory grows with its width alone. Above OVERLAY_MAX_PIXELS the
    overlay is smaller than the image.

    Args:
      predictor: with a window where images are too large for the memory.
      variables: what `predictor.model.apply` takes.
      info: palette.
      inputs: a file, a folder or a video, or several.
      out_dir: made where it is missing.
      size_px: (height, width) that evaluation pads to, or ().
      bucket_px: sizes outside `size_px` are padded to multiples of it; 1: not at all.
      max_pixels: images of more are refused before they are decoded: a few bytes can claim billions of pixels.
      alpha: share of the class colour in overlays.
      progress: called with a line about each input done.

    Returns:
      Counts, and a sentence for each input that could not be used; the others are done all the same.

    Raises:
      JaxsegError: an input does not exist, nothing is found, or a result would replace an input.
    """
    if bucket_px < 1 or (size_px and (len(size_px) != 2 or min(size_px) < 1)):
        raise JaxsegError(f"size_px = {tuple(size_px)}, bucket_px = {bucket_px}: sizes are positive numbers of pixels.")
    found = collect([inputs] if isinstance(inputs, str | os.PathLike) else inputs, out_dir)
    label = _Labeler(predictor, variables, size_px=tuple(size_px), bucket_px=bucket_px)
    report = PredictionReport()
    for number, item in enumerate(found, 1):
        try:
            if item.path.suffix.lower() in VIDEO_SUFFIXES:
                for count in _predict_video(item, label, info, alpha):
                    report.frames += 1
                    if progress and count % FRAMES_PER_LINE == 0:
                        progress(f"{number}/{len(found)} {item.path}: {count} frames")
            else:
                image = read_image(item.path, max_pixels=max_pixels)
                _write(item.target, image, label(image, name=str(item.path)), info, alpha)
                report.images += 1
        except BadExampleError as error:
            report.failed.append(str(error))
        except OSError as error:
            raise JaxsegError(f"{item.target}: cannot be written ({error.strerror or error}).") from error
        if progress:
            progress(f"{number}/{len(found)} {item.path}")
    return report


def collect(inputs: Sequence[str | os.PathLike[str]], out_dir: str | os.PathLike[str]) -> list[_Input]:
    """Every file to predict, in order of its name within a folder, and where its results go.

    Raises:
      JaxsegError: an input does not exist, nothing is found, or a result would replace an input.
    """
    out_dir = pathlib.Path(out_dir)
    files: list[tuple[pathlib.Path, pathlib.Path]] = []
    for entry in map(pathlib.Path, inputs):
        if entry.is_dir():
            inside = _files_below(entry, out_dir)
            if not inside:
                kinds = " ".join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
                raise JaxsegError(f"--input {entry}: the folder holds no image or video ({kinds}).")
            files += [(path, path.relative_to(entry)) for path in inside]
        elif entry.exists():
            files.append((entry, pathlib.Path(entry.name)))
        else:
            raise JaxsegError(f"--input {entry}: there is no such file or folder.")
    if not files:
        raise JaxsegError("--input is missing: name a file, a folder or a video.")
    stems = [name.with_suffix("") for _, name in files]
    result = [
        _Input(path, out_dir / (stem if stems.count(stem) == 1 else name))
        for (path, name), stem in zip(files, stems, strict=True)
    ]
    targets = [item.target for item in result]
    sources = {item.path.resolve() for item in result}
    for item in result:
        written = item.target.with_name(f"{item.target.name}.png")
        if written.resolve() in sources or targets.count(item.target) > 1:
            what = "an input" if written.resolve() in sources else "another input's result"
            raise JaxsegError(f"{item.path}: its result {written} would replace {what}; choose another --output.")
    return result


def _files_below(folder: pathlib.Path, out_dir: pathlib.Path) -> list[pathlib.Path]:
    found = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        known = path.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES
        # Otherwise a second run would predict the overlays of the first.
        ours = out_dir.resolve() != folder.resolve() and path.resolve().is_relative_to(out_dir.resolve())
        if known and not hidden and not ours and path.is_file():
            found.append(path)
    return found


class _Labeler:
    """Labels of one image at its own size, in bands of rows where the predictor's windows allow it.

    Bands are compiled once; whole images once for each size that they are padded to.
    """

    def __init__(self, predictor: Predictor, variables: Any, *, size_px: tuple[int, ...], bucket_px: int) -> None:
        self._variables, self._size_px, self._bucket_px = variables, size_px, bucket_px
        self._fill = np.asarray([round(m) for m in predictor.mean], np.uint8)
        self._whole = jax.jit(predictor.labels)
        self._bands = BandedLabels(predictor) if has_bands(predictor) else None

    def __call__(self, image: np.ndarray, *, name: str) -> Iterator[np.ndarray]:
        """int32 `[n, w]` from top to bottom."""
        height, width = image.shape[:2]
        if self._size_px and height <= self._size_px[0] and width <= self._size_px[1]:
            size = self._size_px
        else:
            size = tuple(-(-n // self._bucket_px) * self._bucket_px for n in (height, width))
        if self._bands is None and height * width > MAX_PIXELS:
            raise BadExampleError(
                f"{name}: {width}x{height} pixels are too many for one piece; predict in windows, {WINDOW_HINT}."
            )
        if size != (height, width):
            padded = np.empty((*size, 3), np.uint8)
            padded[:] = self._fill
            padded[:height, :width] = image
            image = padded
        top = 0
        for band in self._found(image, name):
            yield band[: height - top, :width]
            top += len(band)
            if top >= height:
                return

    def _found(self, image: np.ndarray, name: str) -> Iterator[np.ndarray]:
        try:
            if self._bands is None:
                yield np.asarray(self._whole(self._variables, image[None]))[0]
            else:
                yield from self._bands(self._variables, image)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            how = "take smaller windows" if self._bands else f"predict in windows, {WINDOW_HINT}"
            where = f"{name}: {image.shape[1]}x{image.shape[0]} pixels do not fit the device's memory"
            raise BadExampleError(f"{where}; {how}.") from error


def _write(
    target: pathlib.Path, image: np.ndarray, bands: Iterable[np.ndarray], info: DatasetInfo, alpha: float
) -> None:
    shown = OverlayBands(image, info, alpha, max_pixels=OVERLAY_MAX_PIXELS)
    with palette_png_bands(target.with_name(f"{target.name}.png"), image.shape[:2], info) as add:
        for band in bands:
            add(band)
            shown.add(band)
    stream = io.BytesIO()
    Image.fromarray(shown.picture).save(stream, "JPEG", quality=OVERLAY_QUALITY)
    write_bytes(target.with_name(f"{target.name}_overlay.jpg"), stream.getvalue())


def _frames(path: pathlib.Path) -> Iterator[tuple[np.ndarray, float]]:
    """RGB frames as a player shows them, with the frame rate.

    Raises:
      BadExampleError: after the last frame that can be read, where the file says that there are more.
    """
    capture = cv2.VideoCapture(str(path))
    count = 0
    try:
        rate, promised = capture.get(cv2.CAP_PROP_FPS), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        while True:
            found, frame = capture.read()
            if not found and count < TOLERATED_SHARE * promised - 1:
                raise BadExampleError(f"{path}: ends after {count} of {promised} frames; the video is damaged.")
            if not found:
                return
            count += 1
            yield np.ascontiguousarray(frame[..., ::-1]), rate if rate > 0 else 25.0
    finally:
        capture.release()


def _predict_video(item: _Input, label: _Labeler, info: DatasetInfo, alpha: float) -> Iterator[int]:
    """Writes the frames' labels and the overlay video; a video that is cut off keeps what could be read.

    Yields:
      The number of frames done, after each.
    """
    target, writer, cut_off = item.target, None, None
    whole = target.with_name(f"{target.name}_overlay.mp4")
    beside = whole.with_name(f".{whole.stem}.{os.getpid()}.mp4")
    try:
        try:
            for count, (frame, rate) in enumerate(_frames(item.path)):
                ids = np.concatenate(list(label(frame, name=str(item.path))))
                save_palette_png(target / f"{count:06}.png", ids, info)
                writer = writer or _open_writer(beside, rate, (frame.shape[1], frame.shape[0]))
                writer.write(np.ascontiguousarray(overlay(frame, ids, info, alpha)[..., ::-1]))
                yield count + 1
        except BadExampleError as error:
            cut_off = error
        if writer is None:
            message = f"{item.path}: no frame can be read; the video is damaged or of an unknown format."
            raise cut_off or BadExampleError(message)
        writer.release()  # writes the index, without which no player opens the file
        os.replace(beside, whole)
    finally:
        if writer is not None:
            writer.release()
        beside.unlink(missing_ok=True)
    if cut_off:
        raise cut_off


def _open_writer(path: pathlib.Path, rate: float, size: tuple[int, int]) -> cv2.VideoWriter:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
    if not writer.isOpened():
        raise JaxsegError(f"{path}: OpenCV cannot write MPEG-4 video here; give the frames as images.")
    return writer
