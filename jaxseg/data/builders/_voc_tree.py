"""Reads a VOC devkit tree: ImageSets/Segmentation, JPEGImages, SegmentationClass. VOC 2012 and shapes both are one."""

import pathlib

from jaxseg.core.errors import JaxsegError
from jaxseg.data.builders._segmentation_builder import RawExample, read_list

SPLITS = ("train", "val")


def find_devkit(folder: pathlib.Path) -> pathlib.Path | None:
    """The folder that holds ImageSets/Segmentation, at or below `folder`, where people usually have it."""
    for below in ("", "VOC2012", "VOCdevkit/VOC2012", "TrainVal/VOCdevkit/VOC2012"):
        if (folder / below / "ImageSets" / "Segmentation").is_dir():
            return folder / below
    return None


def read_splits(devkit: pathlib.Path) -> dict[str, list[RawExample]]:
    """Train and val of the tree, in the order of the lists."""
    lists = devkit / "ImageSets" / "Segmentation"
    return {split: [locate(devkit, name) for name in names_of(lists / f"{split}.txt")] for split in SPLITS}


def names_of(path: pathlib.Path) -> list[str]:
    """The image names of a list; they are names, not paths.

    Raises:
      JaxsegError: the list is missing or empty, or a line has a path.
    """
    names = [line.split()[0] for line in read_list(path)]
    for name in names:
        if "/" in name or "\\" in name or name in (".", ".."):
            raise JaxsegError(f"{path}: {name!r} is not the plain name of an image. Correct the line.")
    return names


def locate(devkit: pathlib.Path, name: str) -> RawExample:
    """Where the image and the mask of one name lie."""
    return RawExample(name, devkit / "JPEGImages" / f"{name}.jpg", devkit / "SegmentationClass" / f"{name}.png")


def listed_files(devkit: pathlib.Path) -> list[pathlib.Path]:
    """What decides the content, for the fingerprint: lists, images, masks."""
    folders = ["ImageSets/Segmentation", "JPEGImages", "SegmentationClass"]
    return [devkit / folder for folder in folders if (devkit / folder).is_dir()]
