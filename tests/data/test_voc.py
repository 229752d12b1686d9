"""VOC and SBD from folders and archives, shapes through the same code."""

import http.server
import pathlib
import tarfile
import threading

import numpy as np
import pytest

from jaxseg.core.errors import BadExampleError, JaxsegError
from jaxseg.data import decode
from jaxseg.data.builders import _archives, shapes, voc2012_segmentation
from jaxseg.data.catalog.shapes import INFO as SHAPES
from jaxseg.data.dataset import open_dataset
from jaxseg.data.shapes_scene import draw_scene
from tests.data import trees

VOC_NAME, SBD_NAME = voc2012_segmentation.VOC_ARCHIVE, voc2012_segmentation.SBD_ARCHIVE


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return trees.write_sbd(trees.write_voc(tmp_path_factory.mktemp("voc")))


@pytest.fixture(scope="module")
def archives(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    with tarfile.open(folder / VOC_NAME, "w") as tar:
        tar.add(tree / "VOCdevkit", "VOCdevkit")
    with tarfile.open(folder / SBD_NAME, "w:gz") as tar:
        tar.add(tree / "benchmark_RELEASE", "benchmark_RELEASE")
    return folder


def open_voc(manual_dir, data_dir, **changes):
    config = {"name": "voc2012_segmentation", "manual_dir": str(manual_dir), "data_dir": str(data_dir)}
    return open_dataset(config | changes)


def names(dataset, split):
    source = dataset.split(split)
    return [source.name_of(i) for i in range(len(source))]


def check_whole(dataset):
    """Both sources: four splits, VOC's masks win, val stays out of train_aug."""
    assert dataset.splits == ("train", "val", "trainval", "train_aug")
    assert names(dataset, "trainval") == [*trees.VOC_TRAIN, *trees.VOC_VAL]
    assert names(dataset, "train_aug") == [*trees.VOC_TRAIN, "2008_000010", "2008_000011"]
    own = dataset.split("train_aug")[0]["label"]
    np.testing.assert_array_equal(own, trees.label_of(0, (20, 30), classes=21, void=255))
    extra = dataset.split("train_aug")[2]
    np.testing.assert_array_equal(extra["label"], np.full((17, 22), 5))
    assert extra["image"].shape == (17, 22, 3)
    assert dataset.max_size("train") == (21, 30) and dataset.max_size("train_aug") == (21, 30)


def test_folders(tree, tmp_path):
    check_whole(open_voc(tree, tmp_path))


def test_archives(archives, tmp_path):
    dataset = open_voc(archives, tmp_path)
    check_whole(dataset)
    assert not list(tmp_path.glob("**/scratch.*")), "what was unpacked must be gone"


def test_without_sbd_train_aug_says_why(tree, tmp_path):
    only_voc = tmp_path / "only"
    only_voc.mkdir()
    (only_voc / "VOCdevkit").symlink_to(tree / "VOCdevkit")
    dataset = open_voc(only_voc, tmp_path / "data")
    assert dataset.splits == ("train", "val", "trainval")
    with pytest.raises(JaxsegError, match=r"no split 'train_aug' here: it needs SBD.*benchmark\.tgz"):
        dataset.split("train_aug")
    with pytest.raises(JaxsegError, match="sbd='require'"):
        open_voc(only_voc, tmp_path / "data", builder={"sbd": "require"})
    left_out = open_voc(tree, tmp_path / "data", builder={"sbd": "without"})
    with pytest.raises(JaxsegError, match="sbd='without'"):
        left_out.split("train_aug")
    with pytest.raises(JaxsegError, match=r"builder\.sbd = 'no'"):
        open_voc(tree, tmp_path / "data", builder={"sbd": "no"})


def test_folder_without_voc_gets_three_lines(tmp_path):
    with pytest.raises(JaxsegError) as error:
        open_voc(tmp_path, tmp_path / "data")
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert str(tmp_path) in lines[0] and VOC_NAME in lines[1] and SBD_NAME in lines[1]
    assert "--config=experiments/deeplab_voc.py:demo" in lines[2]


def test_no_network_gets_three_lines(tmp_path, monkeypatch):
    monkeypatch.setitem(voc2012_segmentation.URLS, VOC_NAME, "http://127.0.0.1:9/x.tar")
    with pytest.raises(JaxsegError, match="download of http://127.0.0.1:9/x.tar failed") as error:
        open_voc("", tmp_path)
    assert len(str(error.value).splitlines()) == 3
    assert not list(tmp_path.glob("voc2012_segmentation/*/1.0.0"))


@pytest.fixture
def server(archives, monkeypatch):
    """The archives on the loopback interface, as the publishers' servers would give them."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(archives), **kwargs)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for name in (VOC_NAME, SBD_NAME):
            monkeypatch.setitem(voc2012_segmentation.URLS, name, f"http://127.0.0.1:{served.server_address[1]}/{name}")
        yield served
        served.shutdown()


def md5(path: pathlib.Path) -> str:
    import hashlib

    return hashlib.md5(path.read_bytes()).hexdigest()


def test_download(server, archives, tmp_path, monkeypatch):
    for name in (VOC_NAME, SBD_NAME):
        monkeypatch.setitem(voc2012_segmentation.MD5, name, md5(archives / name))
    check_whole(open_voc("", tmp_path))


def test_download_of_another_file_is_refused(server, tmp_path):
    with pytest.raises(JaxsegError, match="MD5 .* expected 6cd6e144"):
        open_voc("", tmp_path)


def test_download_without_sbd_goes_on_and_says_so(server, archives, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(voc2012_segmentation.MD5, VOC_NAME, md5(archives / VOC_NAME))
    monkeypatch.setitem(voc2012_segmentation.URLS, SBD_NAME, "http://127.0.0.1:9/sbd.tgz")
    dataset = open_voc("", tmp_path)
    assert "Without train_aug" in capfd.readouterr().err
    with pytest.raises(JaxsegError, match="download failed when the data was prepared"):
        dataset.split("train_aug")
    with pytest.raises(JaxsegError, match="sbd.tgz failed"):
        open_voc("", tmp_path, builder={"sbd": "require"})


def test_broken_mat_is_named(tree, tmp_path):
    root = trees.write_sbd(trees.write_voc(tmp_path / "copy"))
    broken = root / "benchmark_RELEASE" / "dataset" / "cls" / "2008_000010.mat"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(BadExampleError, match=r"2008_000010\.mat: no SBD label"):
        open_voc(root, tmp_path / "data")
    dataset = open_voc(root, tmp_path / "data", on_bad_example="skip")
    assert names(dataset, "train_aug") == [*trees.VOC_TRAIN, "2008_000011"]
    assert "2008_000010.mat" in dataset.skipped("train_aug")[0] and dataset.skipped("train") == []


def test_list_with_paths_is_refused(tmp_path):
    root = trees.write_voc(tmp_path / "copy")
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt").write_text("../../secret\n")
    with pytest.raises(JaxsegError, match="is not the plain name"):
        open_voc(root, tmp_path / "data")


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", "a/../../outside.txt"])
def test_archives_cannot_leave_their_folder(tmp_path, name):
    (tmp_path / "payload").write_text("x")
    into = tmp_path / "into" / "deep"
    into.mkdir(parents=True)
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        info = tar.gettarinfo(tmp_path / "payload")
        info.name = name
        with (tmp_path / "payload").open("rb") as file:
            tar.addfile(info, file)
    for wanted in (True, False):
        if name.startswith("/") and wanted:
            continue  # tarfile strips the slash and stays inside
        with pytest.raises(JaxsegError, match="would leave the folder"):
            _archives.extract(tmp_path / "bad.tar", into, wanted=lambda _, w=wanted: w)
    assert not list(tmp_path.glob("**/outside.txt"))


def test_truncated_archive_is_named(archives, tmp_path):
    data = (archives / VOC_NAME).read_bytes()
    (tmp_path / VOC_NAME).write_bytes(data[: len(data) // 2 + 100])
    with pytest.raises(JaxsegError, match=rf"{VOC_NAME}.*not a whole tar archive"):
        open_voc(tmp_path, tmp_path / "data")


SMALL = {"train_count": 22, "val_count": 20, "min_size_px": (40, 48), "max_size_px": (56, 64)}


def test_shapes(tmp_path):
    config = {"name": "shapes", "data_dir": str(tmp_path), "builder": SMALL}
    dataset = open_dataset(config)
    assert dataset.splits == ("train", "val", "trainval")
    assert (len(dataset.split("train")), len(dataset.split("trainval"))) == (22, 42)
    seen = set()
    for i in range(20):
        example = dataset.split("val")[i]
        h, w = example["label"].shape
        assert 40 <= h <= 56 and 48 <= w <= 64 and example["image"].shape == (h, w, 3)
        assert 1 + i in example["label"]
        seen |= set(np.unique(example["label"]).tolist())
    assert seen == {*range(21), 255}
    assert dataset.foreign_labels("train") == (0, {})
    # Void is a thin border, not a part of the scene.
    void = np.mean([np.mean(dataset.split("val")[i]["label"] == 255) for i in range(20)])
    assert 0.01 < void < 0.35


def test_shapes_are_drawn_the_same_again_and_differ_by_seed(tmp_path):
    trees_ = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        shapes.write_devkit(tmp_path / name, {"train": 2, "val": 1}, low=(40, 48), high=(56, 64), seed=seed)
        files = sorted((tmp_path / name).glob("*/*"))
        trees_.append({f.name: f.read_bytes() for f in files if f.is_file()})
    assert trees_[0] == trees_[1]
    assert trees_[0]["train_00000.jpg"] != trees_[2]["train_00000.jpg"]
    assert trees_[0]["train_00000.jpg"] != trees_[0]["val_00000.jpg"]


def test_shapes_options(tmp_path):
    base = {"name": "shapes", "data_dir": str(tmp_path)}
    with pytest.raises(JaxsegError, match="train_count = 0"):
        open_dataset(base | {"builder": SMALL | {"train_count": 0}})
    with pytest.raises(JaxsegError, match="min_size_px"):
        open_dataset(base | {"builder": SMALL | {"min_size_px": (60, 48)}})
    with pytest.raises(JaxsegError, match="manual_dir"):
        open_dataset(base | {"manual_dir": "somewhere"})


def test_scene_labels_lie_on_their_pixels():
    """A plain disc alone: its pixels are reddish inside, and the ring of void is all that separates it."""
    scene = draw_scene(np.random.default_rng(1), size_px=(80, 80), first_class=1, count_range=(1, 1))
    assert set(np.unique(scene.label)) == {0, 1, 255}
    red = scene.image.astype(int)
    inside = red[scene.label == 1]
    assert (inside[:, 0] > inside[:, 1] + 30).mean() > 0.99
    assert SHAPES.class_names[1] == "plain disc"
    decode.encode_palette(scene.label, SHAPES)
