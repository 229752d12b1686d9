"""CamVid's layout, preparation, what is bad about examples, re-use of prepared data."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import ml_collections
import numpy as np
import pytest

from jaxseg.core.errors import BadExampleError, JaxsegError, UnknownNameError
from jaxseg.data import decode
from jaxseg.data.dataset import open_dataset
from jaxseg.data.pipeline import evaluate_batches, train_batches
from tests.data import trees

SIZE = (18, 24)


@pytest.fixture
def tree(tmp_path):
    return trees.write_camvid(tmp_path / "CamVid", {"train": 3, "val": 2})


def config_for(tree, tmp_path, **changes):
    base = {"name": "camvid", "manual_dir": str(tree), "data_dir": str(tmp_path / "prepared"), "train_split": "train"}
    return base | {"crop_size_px": (8, 8)} | changes


def prepared(tmp_path):
    return sorted(p.parent.name for p in (tmp_path / "prepared").glob("camvid/*/1.0.0"))


def test_examples_are_those_of_the_files_in_list_order(camvid, camvid_root):
    assert camvid.splits == ("train", "val")
    assert camvid.max_size("train") == SIZE
    split = camvid.split("train")
    assert len(split) == 7 and len(camvid.split("val")) == 5
    for i in (0, 3, 6):
        example = split[i]
        assert example["name"] == split.name_of(i) == f"train/train_{i}.png"
        assert example["image"].dtype == np.uint8 and example["label"].dtype == np.int32
        np.testing.assert_array_equal(example["image"], trees.image_of(i, SIZE))
        np.testing.assert_array_equal(example["label"], trees.label_of(i, SIZE, classes=11, void=11))
    with pytest.raises(IndexError):
        split[7]


def test_list_of_one_column(tree, tmp_path):
    (tree / "train.txt").write_text("train_1.png\n\n  train/train_0.png\n")
    split = open_dataset(config_for(tree, tmp_path)).split("train")
    assert [split.name_of(i) for i in range(2)] == ["train/train_1.png", "train/train_0.png"]
    np.testing.assert_array_equal(split[0]["label"], trees.label_of(1, SIZE, classes=11, void=11))


def test_second_opening_reads_what_the_first_prepared(tree, tmp_path, monkeypatch, capfd):
    open_dataset(config_for(tree, tmp_path))
    assert "Preparing camvid" in capfd.readouterr().err
    monkeypatch.setattr(decode, "canonical_image", None)
    assert len(open_dataset(config_for(tree, tmp_path)).split("train")) == 3
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_changed_files_are_prepared_anew(tree, tmp_path):
    open_dataset(config_for(tree, tmp_path))
    label = np.full(SIZE, 4, np.int32)
    (tree / "trainannot" / "train_0.png").write_bytes(decode.encode_label(label))
    dataset = open_dataset(config_for(tree, tmp_path))
    np.testing.assert_array_equal(dataset.split("train")[0]["label"], label)
    assert len(prepared(tmp_path)) == 2


def test_an_edit_that_keeps_the_size_is_noticed(tree, tmp_path):
    open_dataset(config_for(tree, tmp_path))
    os.utime(tree / "trainannot" / "train_0.png", (1, 1))
    open_dataset(config_for(tree, tmp_path))
    assert len(prepared(tmp_path)) == 2


def test_a_config_dict_serves_as_well(tree, tmp_path):
    plain = config_for(
        tree, tmp_path, color_jitter={"hue": 0.1}, scale_range=(1.0, 1.0), builder={}, manual_dir=str(tree)
    )
    batches = []
    for config in (plain, ml_collections.ConfigDict(plain)):
        opened = train_batches(config, open_dataset(config), batch_size=2, seed=0, mean_pixel=(0.0, 0.0, 0.0))
        with contextlib.closing(opened):
            batches.append(next(opened))
    assert batches[0]["image"].shape == (2, 8, 8, 3)
    jax.tree.map(np.testing.assert_array_equal, *batches)


def test_missing_folder_says_what_to_put_where(tmp_path):
    for manual_dir in ("", str(tmp_path)):
        with pytest.raises(JaxsegError, match="train.txt") as error:
            open_dataset(config_for("", tmp_path, manual_dir=manual_dir))
        assert "--config.data.manual_dir=FOLDER" in str(error.value)


def test_absent_and_unknown_splits_are_explained(camvid):
    with pytest.raises(JaxsegError, match="no split 'test' here: .*test.txt was not there"):
        camvid.split("test")
    with pytest.raises(JaxsegError, match="Did you mean val"):
        camvid.split("vall")


def test_unknown_names_and_options(tree, tmp_path):
    with pytest.raises(UnknownNameError, match="Did you mean camvid"):
        open_dataset(config_for(tree, tmp_path, name="camvit"))
    with pytest.raises(UnknownNameError, match=r"config\.data\.builder\.sbd is not an option"):
        open_dataset(config_for(tree, tmp_path, builder={"sbd": "auto"}))
    with pytest.raises(JaxsegError, match="on_bad_example"):
        open_dataset(config_for(tree, tmp_path, on_bad_example="ignore"))


def test_empty_list_is_named(tree, tmp_path):
    (tree / "val.txt").write_text("\n")
    with pytest.raises(JaxsegError, match=r"val\.txt: the split is empty"):
        open_dataset(config_for(tree, tmp_path))
    assert prepared(tmp_path) == []


def truncate(path: pathlib.Path):
    path.write_bytes(path.read_bytes()[:150])


def empty(path: pathlib.Path):
    path.write_bytes(b"")


def resize(path: pathlib.Path):
    path.write_bytes(decode.encode_png(trees.image_of(0, (18, 25))))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate, "damaged or truncated"),
        (empty, "empty"),
        (pathlib.Path.unlink, "cannot be read"),
        (resize, r"has 25x18 pixels \(w x h\) but its label .*train_1\.png has 24x18"),
    ],
)
def test_bad_examples_stop_or_are_left_out_by_name(tree, tmp_path, capfd, spoil, message):
    spoil(tree / "train" / "train_1.png")
    with pytest.raises(BadExampleError, match=rf"train_1\.png.*{message}.*on_bad_example='skip'"):
        open_dataset(config_for(tree, tmp_path))
    assert prepared(tmp_path) == [], "a failed preparation must leave nothing that looks prepared"
    dataset = open_dataset(config_for(tree, tmp_path, on_bad_example="skip"))
    assert "left out 1 bad examples" in capfd.readouterr().err
    (skipped,) = dataset.skipped("train")
    assert "train_1.png" in skipped
    split = dataset.split("train")
    assert [split.name_of(i) for i in range(len(split))] == ["train/train_0.png", "train/train_2.png"]
    assert dataset.skipped("val") == []


def test_a_split_of_bad_examples_alone_is_empty(tree, tmp_path):
    for path in (tree / "val").iterdir():
        empty(path)
    with pytest.raises(JaxsegError, match="'val' is empty, every example was bad; the first: .*val_0"):
        open_dataset(config_for(tree, tmp_path, on_bad_example="skip"))


def test_colour_label_is_refused(tree, tmp_path):
    (tree / "trainannot" / "train_2.png").write_bytes(decode.encode_png(trees.image_of(0, SIZE)))
    with pytest.raises(BadExampleError, match=r"trainannot.*train_2\.png: a label in colours"):
        open_dataset(config_for(tree, tmp_path))


def test_unusual_images_are_stored_so_that_they_decode_alike(tree, tmp_path):
    pixels = np.dstack([trees.image_of(9, SIZE), np.full(SIZE, 128, np.uint8)])
    from PIL import Image

    Image.fromarray(pixels).save(tree / "train" / "train_0.png")
    expected = decode.read_image(tree / "train" / "train_0.png")
    np.testing.assert_array_equal(open_dataset(config_for(tree, tmp_path)).split("train")[0]["image"], expected)
    assert not np.array_equal(expected, pixels[..., :3])


def test_values_that_are_no_class_are_named_or_void(tree, tmp_path):
    label = trees.label_of(1, SIZE, classes=11, void=11).astype(np.int32)
    label[5, 5:8], label[6, 6] = 12, 300
    (tree / "trainannot" / "train_1.png").write_bytes(decode.encode_label(label))
    config = config_for(tree, tmp_path, crop_size_px=SIZE)
    dataset = open_dataset(config)
    with pytest.raises(BadExampleError, match=r"train/train_1\.png with \[12, 300\].*Classes are 0..10, void is 11"):
        train_batches(config, dataset, batch_size=1, seed=0, mean_pixel=(0, 0, 0))
    with pytest.raises(BadExampleError, match=r"train_1\.png with \[12, 300\]"):
        evaluate_batches(config, dataset, "train", batch_size=1, mean_pixel=(0, 0, 0))
    # Another split of the same data is fine.
    evaluate_batches(config, dataset, "val", batch_size=1, mean_pixel=(0, 0, 0)).close()
    fixed = config | {"invalid_labels": "void"}
    expected = np.where(label > 11, 11, label)
    batches = list(evaluate_batches(fixed, dataset, "train", batch_size=3, mean_pixel=(0, 0, 0)))
    np.testing.assert_array_equal(batches[0]["label"][1], expected)
    iterator = train_batches(fixed, dataset, batch_size=3, seed=0, mean_pixel=(0, 0, 0))
    batch = next(iterator)
    iterator.close()
    np.testing.assert_array_equal(batch["label"][batch["index"].tolist().index(1)], expected)


def test_rest_of_a_killed_preparation_is_cleared(tree, tmp_path):
    dataset = open_dataset(config_for(tree, tmp_path))
    home = dataset.directory.parent
    dataset.directory.rename(home / "incomplete.ABCDEF_1.0.0")
    open_dataset(config_for(tree, tmp_path))
    assert sorted(p.name for p in home.iterdir()) == [".lock", "1.0.0"]


def test_unwritable_data_dir_is_explained(tree, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JaxsegError, match=r"config\.data\.data_dir"):
        open_dataset(config_for(tree, tmp_path, data_dir=str(tmp_path / "file")))


PROGRAM = """
import json, sys
from jaxseg.data.dataset import open_dataset
split = open_dataset(json.loads(sys.argv[1])).split("train")
print(len(split), int(split[2]["label"].sum()), "tensorflow" in sys.modules, "jax" in sys.modules)
"""


def test_two_processes_may_prepare_at_once(tree, tmp_path):
    argument = json.dumps(config_for(tree, tmp_path))
    started = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, argument], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    total = int(trees.label_of(2, SIZE, classes=11, void=11).astype(int).sum())
    for process in started:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert out.split() == ["3", str(total), "False", "False"]
    assert len(prepared(tmp_path)) == 1


@pytest.mark.data
def test_real_camvid(shared_data, tmp_path):
    root = shared_data / "camvid"
    dataset = open_dataset({"name": "camvid", "manual_dir": str(root), "data_dir": str(tmp_path)})
    assert (len(dataset.split("train")), len(dataset.split("val"))) == (367, 101)
    assert dataset.max_size("val") == (360, 480)
    assert dataset.foreign_labels("train") == dataset.foreign_labels("val") == (0, {})
    from PIL import Image

    for split, index in (("train", 100), ("val", 50)):
        example = dataset.split(split)[index]
        file = pathlib.Path(example["name"]).name
        direct = np.asarray(Image.open(root / f"{split}annot" / file))
        counts = np.bincount(example["label"].ravel(), minlength=12)
        np.testing.assert_array_equal(counts, np.bincount(direct.ravel(), minlength=12))
        np.testing.assert_array_equal(example["image"], np.asarray(Image.open(root / split / file).convert("RGB")))
        assert file in (root / f"{split}.txt").read_text().splitlines()[index]
