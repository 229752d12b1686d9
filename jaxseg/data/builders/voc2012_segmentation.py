"""PASCAL VOC 2012 segmentation and, where SBD is there, the 10,582 training images of train_aug.

train_aug = (all of SBD and VOC's train) minus VOC's val; where both have a mask VOC's own wins. It is train followed by
the images that only SBD has.
"""

import os
import pathlib

import numpy as np
import tensorflow_datasets as tfds
from rich.console import Console

from jaxseg.core.errors import BadExampleError, JaxsegError
from jaxseg.data import decode
from jaxseg.data.builders import _archives, _voc_tree
from jaxseg.data.builders._segmentation_builder import RawExample, SegmentationBuilder, fingerprint
from jaxseg.data.catalog.voc2012_segmentation import INFO

VOC_ARCHIVE, SBD_ARCHIVE = "VOCtrainval_11-May-2012.tar", "benchmark.tgz"
URLS = {
    VOC_ARCHIVE: f"http://host.robots.ox.ac.uk/pascal/VOC/voc2012/{VOC_ARCHIVE}",
    SBD_ARCHIVE: f"https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/{SBD_ARCHIVE}",
}
MD5 = {VOC_ARCHIVE: "6cd6e144f989b92b3379bac3b3de84fd", SBD_ARCHIVE: "82b4d87ceb2ed10f6038a1cba92111cb"}
SBD_FOLDERS = ("", "benchmark_RELEASE/dataset", "dataset", "SBD", "sbd")
SBD_CHOICES = ("auto", "require", "without")
EXTRA = "_sbd"
CONNECT_SECONDS = 15
DEMO = "python -m jaxseg.main --config=experiments/deeplab_voc.py:demo"


def build(
    *,
    manual_dir: str | os.PathLike = "",
    data_dir: str | os.PathLike = "",
    on_bad_example: str = "raise",
    sbd: str = "auto",
) -> "Voc2012Segmentation":
    """The builder of VOC 2012 segmentation.

    Args:
      manual_dir: holds VOCtrainval_11-May-2012.tar or VOCdevkit/, and benchmark.tgz or benchmark_RELEASE/ for
        train_aug. Empty: both are downloaded.
      data_dir: where prepared data goes; default `$JAXSEG_DATA_DIR` or `~/.cache/jaxseg/data`.
      on_bad_example: `raise`, or `skip` to leave bad examples out, counted and named.
      sbd: `auto` takes SBD where it is to be had, `require` stops without it, `without` leaves it out.

    Raises:
      JaxsegError: the folder does not hold the data; says in three lines which file to put where.
    """
    if sbd not in SBD_CHOICES:
        raise JaxsegError(f"config.data.builder.sbd = {sbd!r}: use one of {', '.join(SBD_CHOICES)}.")
    root = pathlib.Path(manual_dir).expanduser() if manual_dir else None
    return Voc2012Segmentation(root, sbd=sbd, data_dir=data_dir, on_bad_example=on_bad_example)


def _how_to_get(reason: str) -> JaxsegError:
    """Three lines: what is wrong, which file to put where, what works without them."""
    return JaxsegError(
        f"VOC 2012 is not here: {reason}\n"
        f"Put {VOC_ARCHIVE} ({URLS[VOC_ARCHIVE]}), and for train_aug {SBD_ARCHIVE} ({URLS[SBD_ARCHIVE]}), into a "
        "folder and pass --config.data.manual_dir=FOLDER (unpacked VOCdevkit/ and benchmark_RELEASE/ do as well).\n"
        f"To see training work without any of this: {DEMO}"
    )


def _find_sbd(root: pathlib.Path) -> pathlib.Path | None:
    return next((root / f for f in SBD_FOLDERS if (root / f / "cls").is_dir() and (root / f / "img").is_dir()), None)


def _check_reachable(url: str) -> None:
    """TFDS would retry for two minutes where there is no network; one short question answers that first."""
    import requests  # only a download needs it

    answer = requests.head(url, timeout=CONNECT_SECONDS, allow_redirects=True)
    if answer.status_code >= 400 and answer.status_code not in (403, 405):  # some servers refuse HEAD alone
        answer.raise_for_status()


class Voc2012Segmentation(SegmentationBuilder, skip_registration=True):  # type: ignore[call-arg]
    """20 classes and background, void 255."""

    name = "voc2012_segmentation"
    FACTS = INFO

    def __init__(
        self, root: pathlib.Path | None, *, sbd: str, data_dir: str | os.PathLike, on_bad_example: str
    ) -> None:
        self.sbd = sbd
        self.devkit, self.sbd_root = (_voc_tree.find_devkit(root), _find_sbd(root)) if root else (None, None)
        self.archives = {name: root / name for name in URLS if root and (root / name).is_file()}
        if root and not self.devkit and VOC_ARCHIVE not in self.archives:
            raise _how_to_get(f"config.data.manual_dir={str(root)!r} holds neither {VOC_ARCHIVE} nor VOCdevkit/.")
        if root and sbd == "require" and not self.sbd_root and SBD_ARCHIVE not in self.archives:
            raise _how_to_get(f"config.data.builder.sbd='require', but {str(root)!r} has no {SBD_ARCHIVE}.")
        self.download = root is None
        super().__init__(data_dir=data_dir, key=self._key(root), on_bad_example=on_bad_example)

    def _key(self, root: pathlib.Path | None) -> str:
        files: list[pathlib.Path] = []
        files += _voc_tree.listed_files(self.devkit) if self.devkit else []
        files += [] if self.devkit else [p for n, p in self.archives.items() if n == VOC_ARCHIVE]
        if self.sbd != "without":
            if self.sbd_root:
                files += [self.sbd_root / "cls", self.sbd_root / "img"]
                files += [p for p in (self.sbd_root / f"{s}.txt" for s in _voc_tree.SPLITS) if p.is_file()]
            elif SBD_ARCHIVE in self.archives:
                files.append(self.archives[SBD_ARCHIVE])
        return fingerprint(options={"sbd": self.sbd, "download": self.download}, files=files, root=root)

    def raw_splits(self, dl_manager: tfds.download.DownloadManager) -> dict[str, list[RawExample]]:
        """Train and val of VOC; the images that only SBD has; trainval and train_aug joined from these."""
        devkit = self._devkit(dl_manager)
        splits = _voc_tree.read_splits(devkit)
        self.joined["trainval"] = ("train", "val")
        sbd_root = self._sbd(dl_manager)
        if sbd_root is None:
            self.absent.setdefault("train_aug", "it was prepared with config.data.builder.sbd='without'.")
            return splits
        own = {example.name for examples in splits.values() for example in examples}
        names = [n for s in _voc_tree.SPLITS for n in _voc_tree.names_of(sbd_root / f"{s}.txt")]
        # dict keeps the lists' order and drops doubles.
        extra = [self._locate_sbd(sbd_root, devkit, name) for name in dict.fromkeys(names) if name not in own]
        if extra:
            splits[EXTRA] = extra
        self.joined["train_aug"] = ("train", EXTRA) if extra else ("train",)
        return splits

    @staticmethod
    def _locate_sbd(sbd_root: pathlib.Path, devkit: pathlib.Path, name: str) -> RawExample:
        image = sbd_root / "img" / f"{name}.jpg"
        if not image.is_file():
            image = devkit / "JPEGImages" / f"{name}.jpg"
        return RawExample(name, image, sbd_root / "cls" / f"{name}.mat")

    def load_label(self, path: pathlib.Path, name: str) -> tuple[bytes, np.ndarray]:
        """VOC's palette PNG, or SBD's `.mat` with the ids in GTcls.Segmentation."""
        if path.suffix != ".mat":
            return super().load_label(path, name)
        from scipy.io import loadmat  # a quarter of a second that only SBD needs

        try:
            ids = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
            ids = np.asarray(ids).astype(np.int32)
            if ids.ndim != 2 or ids.size == 0:
                raise ValueError(f"GTcls.Segmentation has shape {ids.shape}")
        # A broken .mat fails in scipy in many ways.
        except Exception as error:
            raise BadExampleError(
                f"{name}: no SBD label can be read from it ({type(error).__name__}: {error}). Copy it anew, or leave "
                "it out of the list."
            ) from error
        return decode.encode_label(ids, name=name), ids

    def _devkit(self, dl_manager: tfds.download.DownloadManager) -> pathlib.Path:
        if self.devkit:
            return self.devkit
        archive = self._archive(VOC_ARCHIVE, dl_manager)
        needed = ("/ImageSets/Segmentation/", "/JPEGImages/", "/SegmentationClass/")
        folder = self.scratch / "voc"
        folder.mkdir()
        _archives.extract(archive, folder, wanted=lambda name: any(part in name for part in needed))
        devkit = _voc_tree.find_devkit(folder)
        if devkit is None:
            raise _how_to_get(f"{archive} holds no VOCdevkit/VOC2012.")
        return devkit

    def _sbd(self, dl_manager: tfds.download.DownloadManager) -> pathlib.Path | None:
        if self.sbd == "without":
            return None
        if self.sbd_root:
            return self.sbd_root
        put = f"Put {SBD_ARCHIVE} ({URLS[SBD_ARCHIVE]}) beside VOC in config.data.manual_dir, or train on 'train'."
        if not self.download and SBD_ARCHIVE not in self.archives:
            self.absent["train_aug"] = f"it needs SBD, which was not in config.data.manual_dir. {put}"
            return None
        try:
            archive = self._archive(SBD_ARCHIVE, dl_manager)
        except JaxsegError as error:
            if self.sbd == "require":
                raise
            reason = str(error).splitlines()[0]
            self.absent["train_aug"] = (
                f"it needs SBD, whose download failed when the data was prepared ({reason}). {put} "
                "config.data.builder.sbd='require' tries the download again."
            )
            Console(stderr=True).print(f"Without train_aug: {reason}", markup=False, soft_wrap=True)
            return None
        folder = self.scratch / "sbd"
        folder.mkdir()
        _archives.extract(archive, folder, wanted=lambda name: "/inst/" not in name and "/dataset/" in name)
        found = _find_sbd(folder)
        if found is None:
            raise JaxsegError(f"{archive} holds no benchmark_RELEASE/dataset with cls/ and img/. Fetch it anew.")
        return found

    def _archive(self, name: str, dl_manager: tfds.download.DownloadManager) -> pathlib.Path:
        if not self.download:
            return self.archives[name]
        tfds.enable_progress_bar()
        try:
            _check_reachable(URLS[name])
            path = pathlib.Path(dl_manager.download(URLS[name]))
        # Networks fail in many ways, and TFDS's promises hide some of them.
        except Exception as error:
            raise _how_to_get(f"the download of {URLS[name]} failed ({type(error).__name__}).") from error
        finally:
            tfds.disable_progress_bar()
        _archives.check_md5(path, MD5[name])
        return path
