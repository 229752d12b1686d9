"""Small prepared data sets that the tests of this folder share."""

import pathlib

import pytest

from jaxseg.data.dataset import Dataset, open_dataset
from tests.data import trees


@pytest.fixture(scope="session")
def camvid_root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A tree in SegNet's layout: 7 training images and 5 of val, 18x24."""
    return trees.write_camvid(tmp_path_factory.mktemp("camvid"), {"train": 7, "val": 5})


@pytest.fixture(scope="session")
def camvid_config(camvid_root: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """config.data for it, with every augmentation on."""
    return {
        "name": "camvid",
        "manual_dir": str(camvid_root),
        "data_dir": str(tmp_path_factory.mktemp("prepared")),
        "train_split": "train",
        "crop_size_px": (20, 16),
        "scale_range": (0.5, 2.0),
        "flip_probability": 0.5,
        "color_jitter": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1},
        "workers": 0,
        "prefetch_batches": 2,
    }


@pytest.fixture(scope="session")
def camvid(camvid_config: dict) -> Dataset:
    """It, prepared and open."""
    return open_dataset(camvid_config)
