"""The command that counts a data set's labels."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxseg.core.errors import BadExampleError, JaxsegError
from jaxseg.data import decode
from jaxseg.data.catalog.camvid import INFO
from jaxseg.losses import weighting
from jaxseg.tools import class_weights
from jaxseg.train.class_weights import read_class_weights
from tests.data.trees import label_of, write_camvid


def config(root, **changes):
    data = {"name": "camvid", "manual_dir": str(root / "camvid"), "data_dir": str(root / "prepared")}
    data |= {"invalid_labels": "raise", "on_bad_example": "raise", "train_split": "train"}
    return ConfigDict({"data": data | changes})


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    write_camvid(root / "camvid", {"train": 3, "val": 2})
    return root


def test_counts_by_hand():
    maps = [np.asarray([[0, 0, 1], [255, 255, -1]]), np.asarray([[1, 1], [1, 3]]), np.full((1, 2), 255)]
    counts = class_weights.count_labels(maps, 4)
    np.testing.assert_array_equal(counts.pixels, [2, 4, 0, 1])
    np.testing.assert_array_equal(counts.image_pixels, [3, 7, 0, 4])
    np.testing.assert_array_equal(counts.class_images, [1, 2, 0, 1])
    assert (counts.images, counts.void, counts.pixels.dtype) == (3, 5, np.int64)


@pytest.mark.parametrize("method", weighting.METHODS)
def test_the_command_counts_every_pixel_and_writes_what_a_config_takes(tree, tmp_path, capsys, method):
    output = tmp_path / "w.json"
    assert class_weights.run(config(tree), split="train", method=method, output=output) == 0
    record = json.loads(output.read_text())
    labels = np.stack([label_of(i, (18, 24), classes=11, void=11) for i in range(3)])
    assert record["pixels"] == [int((labels == c).sum()) for c in range(11)]
    assert record["void_pixels"] == (labels == 11).sum() and record["images"] == 3
    assert record["class_images"] == [int((labels == c).any((1, 2)).sum()) for c in range(11)]
    there = (labels != 11).sum((1, 2))
    expected = [int(there[(labels == c).any((1, 2))].sum()) for c in range(11)]
    assert record["image_pixels"] == expected
    read = read_class_weights({"ce": {"class_weights": str(output)}}, INFO)["ce"]["class_weights"]
    assert list(read) == record["class_weights"]
    if method == "median_frequency":
        weights = weighting.median_frequency(record["pixels"], record["image_pixels"])
        np.testing.assert_allclose(read, weights, rtol=1e-5)
    printed = capsys.readouterr().out
    absent = [n for n, p in zip(INFO.class_names, record["pixels"], strict=True) if not p]
    assert absent and f"Without a pixel in this split: {', '.join(absent)}." in printed
    line = next(line for line in printed.splitlines() if line.startswith("config.loss"))
    assert eval(line.partition(" = ")[2])["cross_entropy"]["class_weights"] == read


def test_an_unknown_split(tree):
    with pytest.raises(JaxsegError, match="trian.*Did you mean train"):
        class_weights.run(config(tree), split="trian", method="inverse_log", output=None)


def test_labels_that_are_no_class(tmp_path):
    write_camvid(tmp_path / "camvid", {"train": 2, "val": 1})
    label = np.full((18, 24), 3, np.int32)
    label[0] = 77
    (tmp_path / "camvid" / "trainannot" / "train_0.png").write_bytes(decode.encode_label(label))
    with pytest.raises(BadExampleError, match="77"):
        class_weights.run(config(tmp_path), split="train", method="inverse_log", output=None)
    void = config(tmp_path, invalid_labels="void")
    assert class_weights.run(void, split="train", method="inverse_log", output=tmp_path / "w.json") == 0
    assert json.loads((tmp_path / "w.json").read_text())["void_pixels"] == 24 + 3


def test_nothing_but_void():
    counts = class_weights.count_labels([np.full((2, 2), 255)], 3)
    with pytest.raises(JaxsegError, match="No pixel of the split"):
        class_weights.weigh("median_frequency", counts)


@pytest.mark.parametrize("beta", [1.0, -0.5])
def test_beta_out_of_its_range(beta):
    counts = class_weights.count_labels([np.zeros((2, 2), np.int32)], 3)
    with pytest.raises(JaxsegError, match="--beta"):
        class_weights.weigh("effective_number", counts, beta=beta)


@pytest.mark.data
def test_camvid(shared_data, tmp_path):
    """Exact counts of SegNet's CamVid; weights beside the published ones, which are from another cut of the labels."""
    real = config(tmp_path, manual_dir=str(shared_data / "camvid"), data_dir=str(tmp_path))
    class_weights.run(real, split="train", method="median_frequency", output=tmp_path / "w.json")
    record = json.loads((tmp_path / "w.json").read_text())
    assert record["images"] == 367
    assert sum(record["pixels"]) + record["void_pixels"] == 367 * 360 * 480
    assert record["pixels"][:4] == [10_682_767, 14_750_079, 623_349, 20_076_880]
    published = {"sky": 0.2595, "building": 0.1826, "pole": 4.5640, "road": 0.1417, "pavement": 0.9051, "tree": 0.3826}
    published |= {
        "fence": 1.8418,
        "car": 0.6823,
        "pedestrian": 6.2478,
        "bicyclist": 7.3614,
    }  # sign, 9.6446, is not near
    found = dict(zip(record["classes"], record["class_weights"], strict=True))
    np.testing.assert_allclose([found[n] for n in published], list(published.values()), rtol=0.2)
