"""Small data sets in the layouts that people have, written for a test."""

import pathlib

import cv2
import numpy as np
import scipy.io

from jaxseg.data import decode
from jaxseg.data.catalog.voc2012_segmentation import INFO as VOC


def image_of(number: int, size: tuple[int, int]) -> np.ndarray:
    """A smooth picture that differs from number to number."""
    coarse = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_LINEAR)


def label_of(number: int, size: tuple[int, int], *, classes: int, void: int) -> np.ndarray:
    """Blocks of classes with some void."""
    coarse = np.random.default_rng(1000 + number).integers(0, classes, (3, 4), dtype=np.uint8)
    label = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    label[0, :3] = void
    return label


def write_camvid(root: pathlib.Path, counts: dict[str, int], *, size: tuple[int, int] = (18, 24)) -> pathlib.Path:
    """SegNet's layout with two-column lists; image number i has seed i."""
    for split, count in counts.items():
        (root / split).mkdir(parents=True)
        (root / f"{split}annot").mkdir()
        names = [f"{split}_{i}.png" for i in range(count)]
        for i, name in enumerate(names):
            (root / split / name).write_bytes(decode.encode_png(image_of(i, size)))
            (root / f"{split}annot" / name).write_bytes(
                decode.encode_label(label_of(i, size, classes=11, void=11).astype(np.int32))
            )
        lines = [f"/SegNet/CamVid/{split}/{n} /SegNet/CamVid/{split}annot/{n}\n" for n in names]
        (root / f"{split}.txt").write_text("".join(lines))
    return root


VOC_TRAIN, VOC_VAL = ("2007_000001", "2007_000002"), ("2007_000003",)
SBD_TRAIN, SBD_VAL = ("2007_000001", "2008_000010"), ("2007_000003", "2008_000011")


def write_voc(root: pathlib.Path) -> pathlib.Path:
    """`root/VOCdevkit/VOC2012` with two training images and one of val, in different sizes."""
    devkit = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (devkit / folder).mkdir(parents=True)
    for i, name in enumerate((*VOC_TRAIN, *VOC_VAL)):
        size = (20 + i, 30 - i)
        _write_jpeg(devkit / "JPEGImages" / f"{name}.jpg", i, size)
        decode.write_label_png(
            devkit / "SegmentationClass" / f"{name}.png", label_of(i, size, classes=21, void=255), VOC
        )
    for split, names in (("train", VOC_TRAIN), ("val", VOC_VAL)):
        (devkit / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def write_sbd(root: pathlib.Path) -> pathlib.Path:
    """`root/benchmark_RELEASE/dataset` with .mat labels that are class 5 everywhere, void nowhere."""
    dataset = root / "benchmark_RELEASE" / "dataset"
    (dataset / "img").mkdir(parents=True)
    (dataset / "cls").mkdir()
    for i, name in enumerate(dict.fromkeys((*SBD_TRAIN, *SBD_VAL))):
        size = (16 + i, 22)
        _write_jpeg(dataset / "img" / f"{name}.jpg", 50 + i, size)
        cls = {"Segmentation": np.full(size, 5, np.uint8), "CategoriesPresent": np.array([5])}
        scipy.io.savemat(dataset / "cls" / f"{name}.mat", {"GTcls": cls})
    (dataset / "train.txt").write_text("\n".join(SBD_TRAIN) + "\n")
    (dataset / "val.txt").write_text("\n".join(SBD_VAL) + "\n")
    return root


def _write_jpeg(path: pathlib.Path, number: int, size: tuple[int, int]) -> None:
    path.write_bytes(cv2.imencode(".jpg", image_of(number, size)[..., ::-1])[1].tobytes())
