"""Shapes: scenes that jaxseg draws itself, written as a VOC devkit tree and read by the code that reads VOC."""

import os
import pathlib
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import tensorflow_datasets as tfds

from jaxseg.core.errors import JaxsegError
from jaxseg.data import decode
from jaxseg.data.builders import _voc_tree
from jaxseg.data.builders._segmentation_builder import RawExample, SegmentationBuilder, fingerprint
from jaxseg.data.catalog.shapes import INFO
from jaxseg.data.shapes_scene import draw_scene

DRAWING = 1
"""Raise it whenever the drawing changes, so that scenes drawn before are not taken for the new ones."""
JPEG_QUALITY = 92


def build(
    *,
    manual_dir: str | os.PathLike = "",
    data_dir: str | os.PathLike = "",
    on_bad_example: str = "raise",
    train_count: int = 800,
    val_count: int = 100,
    min_size_px: Sequence[int] = (144, 176),
    max_size_px: Sequence[int] = (176, 224),
    seed: int = 0,
) -> "Shapes":
    """The builder of shapes; the same options draw the same data.

    Args:
      manual_dir: must be empty, there is nothing to bring.
      data_dir: where prepared data goes; default `$JAXSEG_DATA_DIR` or `~/.cache/jaxseg/data`.
      on_bad_example: as for the other data sets; drawn examples are all good.
      train_count: images of split train.
      val_count: images of split val.
      min_size_px: smallest (h, w).
      max_size_px: largest (h, w).
      seed: other seeds draw other scenes.

    Raises:
      JaxsegError: a count below 1, or sizes that make no range.
    """
    if manual_dir:
        raise JaxsegError(f"config.data.manual_dir={str(manual_dir)!r}: shapes draws its own images; leave it empty.")
    for name, count in (("train_count", train_count), ("val_count", val_count)):
        if count < 1:
            raise JaxsegError(f"config.data.builder.{name} = {count}: the split would be empty; give at least 1.")
    low, high = tuple(min_size_px), tuple(max_size_px)
    if len(low) != 2 or len(high) != 2 or not all(16 <= a <= b for a, b in zip(low, high, strict=True)):
        raise JaxsegError(
            f"config.data.builder.min_size_px = {low}, max_size_px = {high}: give (h, w) of at least 16, min <= max."
        )
    counts = {"train": train_count, "val": val_count}
    return Shapes(counts, low, high, seed, data_dir=data_dir, on_bad_example=on_bad_example)


class Shapes(SegmentationBuilder, skip_registration=True):  # type: ignore[call-arg]
    """20 classes and background, void 255."""

    name = "shapes"
    FACTS = INFO

    def __init__(
        self,
        counts: dict[str, int],
        low: tuple[int, ...],
        high: tuple[int, ...],
        seed: int,
        *,
        data_dir: str | os.PathLike,
        on_bad_example: str,
    ) -> None:
        self.counts, self.low, self.high, self.seed = counts, low, high, seed
        key = fingerprint(options={"drawing": DRAWING, "counts": counts, "low": low, "high": high, "seed": seed})
        super().__init__(data_dir=data_dir, key=key, on_bad_example=on_bad_example)

    def raw_splits(self, dl_manager: tfds.download.DownloadManager) -> dict[str, list[RawExample]]:
        """Draws the tree and reads it."""
        del dl_manager
        devkit = self.scratch / "VOCdevkit" / "VOC2012"
        drawn = self.advance("drawing shapes", sum(self.counts.values()))
        write_devkit(devkit, self.counts, low=self.low, high=self.high, seed=self.seed, drawn=drawn)
        self.joined["trainval"] = ("train", "val")
        return _voc_tree.read_splits(devkit)


def write_devkit(
    devkit: pathlib.Path,
    counts: dict[str, int],
    *,
    low: Sequence[int],
    high: Sequence[int],
    seed: int,
    drawn: Callable[[], None] = lambda: None,
) -> None:
    """Draws scenes into a VOC devkit tree: JPEGImages, palette PNGs in SegmentationClass, lists.

    Args:
      devkit: the folder to make.
      counts: split -> number of images; scene i of a split holds class 1 + i % 20.
      low: smallest (h, w).
      high: largest (h, w).
      seed: scene i of split number s is drawn from (seed, s, i).
      drawn: called after each scene.
    """
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (devkit / folder).mkdir(parents=True)
    for number, (split, count) in enumerate(counts.items()):
        names = [f"{split}_{i:05d}" for i in range(count)]
        for i, name in enumerate(names):
            rng = np.random.default_rng((3, seed, number, i))
            size = int(rng.integers(low[0], high[0] + 1)), int(rng.integers(low[1], high[1] + 1))
            scene = draw_scene(rng, size_px=size, first_class=1 + i % (INFO.num_classes - 1))
            jpeg = cv2.imencode(".jpg", scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
            (devkit / "JPEGImages" / f"{name}.jpg").write_bytes(jpeg.tobytes())
            (devkit / "SegmentationClass" / f"{name}.png").write_bytes(decode.encode_palette(scene.label, INFO))
            drawn()
        (devkit / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))
