"""Prediction of files, folders and videos: labels at the input's own size, failures named, nothing overwritten."""

import pathlib

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxseg.core.errors import JaxsegError
from jaxseg.core.types import DatasetInfo
from jaxseg.data import decode
from jaxseg.inference.predictor import Predictor
from jaxseg.tools import predict
from jaxseg.tools.predict import predict_files
from tests.e2e import runs

INFO = DatasetInfo("three", ("red", "green", "blue"), ((200, 0, 0), (0, 200, 0), (0, 0, 200)), void=255)
MEAN = (100.0, 110.0, 120.0)


class PerPixel(nn.Module):
    """The largest channel wins; notes the sizes it is traced with."""

    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        TRACES.append(image.shape[1:3])
        return {"logits": image}


class Pooled(nn.Module):
    """The image's mean, padding included, moves every pixel: tells how an image was padded."""

    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        return {"logits": image - 40 * jnp.mean(image, axis=(1, 2), keepdims=True)}


TRACES: list[tuple[int, int]] = []
VARIABLES: dict[str, object] = {}


def predictor(model=None, **options):
    return Predictor(model=model or PerPixel(), mean=MEAN, std=(1.0, 1.0, 1.0), num_classes=3, **options)


def expected(image):
    return np.argmax(image.astype(np.float32) - np.asarray(MEAN, np.float32), axis=-1)


def picture(path: pathlib.Path, size=(9, 14), seed=0) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return image


def read(path: pathlib.Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "P" and image.getpalette()[:9] == [200, 0, 0, 0, 200, 0, 0, 0, 200]
        return np.asarray(image)


def files(folder: pathlib.Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_one_file(tmp_path):
    image = picture(tmp_path / "a.png")
    report = predict_files(predictor(), VARIABLES, INFO, tmp_path / "a.png", tmp_path / "out")
    assert (report.images, report.frames, report.failed) == (1, 0, [])
    assert files(tmp_path / "out") == ["a.png", "a_overlay.jpg"]
    np.testing.assert_array_equal(read(tmp_path / "out" / "a.png"), expected(image))


def test_overlay_mixes_image_and_colour(tmp_path):
    Image.fromarray(np.full((16, 24, 3), (250, 60, 60), np.uint8)).save(tmp_path / "a.png")
    predict_files(predictor(), VARIABLES, INFO, tmp_path / "a.png", tmp_path / "out", alpha=0.5)
    with Image.open(tmp_path / "out" / "a_overlay.jpg") as overlaid:
        assert overlaid.size == (24, 16)
        np.testing.assert_allclose(np.asarray(overlaid)[8, 12], (225, 30, 30), atol=3)


def test_folder_with_subfolders_and_bad_files(tmp_path):
    source, out = tmp_path / "in", tmp_path / "in" / "out"
    images = {name: picture(source / f"{name}.png", seed=i) for i, name in enumerate(["b", "a", "deep/er/a"])}
    (source / "bad.jpg").write_bytes(b"no picture")
    (source / "empty.png").write_bytes(b"")
    (source / "cut.png").write_bytes((source / "a.png").read_bytes()[:100])
    (source / "notes.txt").write_text("left alone")
    picture(source / ".hidden.png")
    seen = []
    for _ in range(2):  # The second run must not predict what the first wrote.
        report = predict_files(predictor(), VARIABLES, INFO, source, out, progress=seen.append)
        assert report.images == 3
        assert len(report.failed) == 3
        for name, sentence in zip(("bad.jpg", "cut.png", "empty.png"), report.failed, strict=True):
            assert str(source / name) in sentence
    assert files(out) == sorted(f"{n}{s}" for n in images for s in (".png", "_overlay.jpg"))
    for name, image in images.items():
        np.testing.assert_array_equal(read(out / f"{name}.png"), expected(image))
    assert len(seen) == 12 and seen[0].startswith("1/6 ")


def test_inputs_that_share_a_stem_keep_their_suffix(tmp_path):
    image = picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "a.bmp", seed=1)
    predict_files(predictor(), VARIABLES, INFO, tmp_path / "in", tmp_path / "out")
    assert files(tmp_path / "out") == ["a.bmp.png", "a.bmp_overlay.jpg", "a.png.png", "a.png_overlay.jpg"]
    np.testing.assert_array_equal(read(tmp_path / "out" / "a.png.png"), expected(image))


def test_rotation_by_exif_and_other_kinds(tmp_path):
    image = np.zeros((8, 12, 3), np.uint8)
    image[:, :6], image[:, 6:] = (255, 0, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(image).convert("L").save(tmp_path / "grey.png")
    Image.fromarray(image[:1, :1]).save(tmp_path / "dot.png")
    report = predict_files(
        predictor(), VARIABLES, INFO, [tmp_path / n for n in ("turned.png", "grey.png", "dot.png")], tmp_path / "out"
    )
    assert report.images == 3
    np.testing.assert_array_equal(read(tmp_path / "out" / "turned.png"), expected(np.rot90(image, -1)))
    assert read(tmp_path / "out" / "grey.png").shape == (8, 12)
    assert read(tmp_path / "out" / "dot.png").tolist() == [[0]]


def test_labels_are_those_of_an_evaluation(tmp_path):
    image = picture(tmp_path / "a.png", size=(5, 6))
    padded = np.empty((1, 16, 16, 3), np.uint8)
    padded[:] = MEAN
    padded[0, :5, :6] = image
    for size, shown in (((16, 16), padded), ((5, 5), image[None]), ((), image[None])):
        predict_files(predictor(Pooled()), VARIABLES, INFO, tmp_path / "a.png", tmp_path / "out", size_px=size)
        labels = predictor(Pooled()).labels(VARIABLES, shown)[0, :5, :6]
        np.testing.assert_array_equal(read(tmp_path / "out" / "a.png"), labels)
    assert not np.array_equal(predictor(Pooled()).labels(VARIABLES, padded)[0, :5, :6], labels), "the test is blind"


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, [(9, 14), (10, 14), (31, 7)]),
        ({"size_px": (16, 16)}, [(16, 16), (31, 7)]),
        ({"bucket_px": 16}, [(16, 16), (32, 16)]),
    ],
)
def test_how_often_it_compiles(tmp_path, options, sizes):
    shapes = [(9, 14), (10, 14), (9, 14), (31, 7)]
    images = [picture(tmp_path / "in" / f"{i}.png", size, i) for i, size in enumerate(shapes)]
    TRACES.clear()
    predict_files(predictor(), VARIABLES, INFO, tmp_path / "in", tmp_path / "out", **options)
    assert TRACES == sizes
    for i, image in enumerate(images):
        np.testing.assert_array_equal(read(tmp_path / "out" / f"{i}.png"), expected(image))


def test_window(tmp_path):
    image = picture(tmp_path / "a.png", (20, 31))
    predict_files(predictor(window_px=(8, 8)), VARIABLES, INFO, tmp_path / "a.png", tmp_path / "out")
    np.testing.assert_array_equal(read(tmp_path / "out" / "a.png"), expected(image))


def test_windows_are_compiled_once_for_all_sizes(tmp_path):
    sizes = [(20, 31), (9, 14), (3, 3)]
    images = [picture(tmp_path / "in" / f"{i}.png", size, i) for i, size in enumerate(sizes)]
    TRACES.clear()
    predict_files(predictor(window_px=(8, 8)), VARIABLES, INFO, tmp_path / "in", tmp_path / "out", size_px=(10, 14))
    assert TRACES == [(8, 8)]
    for i, image in enumerate(images):
        np.testing.assert_array_equal(read(tmp_path / "out" / f"{i}.png"), expected(image))


def test_images_above_the_limit_need_leave_and_windows(tmp_path, monkeypatch):
    image = picture(tmp_path / "a.png", (20, 31))
    for module in (decode, predict):
        monkeypatch.setattr(module, "MAX_PIXELS", 600)
    monkeypatch.setattr(predict, "OVERLAY_MAX_PIXELS", 100)
    asked = VARIABLES, INFO, tmp_path / "a.png", tmp_path / "out"
    for options, allowed, says in (
        ({"window_px": (8, 8)}, 600, "--max_pixels"),
        ({}, 620, "window_px"),
        ({"window_px": (8, 8), "flip": True}, 620, "window_px"),
    ):
        report = predict_files(predictor(**options), *asked, max_pixels=allowed)
        assert report.images == 0 and says in report.failed[0]
        assert not (tmp_path / "out").exists() or not files(tmp_path / "out")
    assert predict_files(predictor(window_px=(8, 8)), *asked, max_pixels=620).failed == []
    np.testing.assert_array_equal(read(tmp_path / "out" / "a.png"), expected(image))
    with Image.open(tmp_path / "out" / "a_overlay.jpg") as small:
        assert small.size == (10, 7)


def video(path: pathlib.Path, count=5, size=(48, 64)) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, size[::-1])
    assert writer.isOpened()
    for i in range(count):
        frame = np.zeros((*size, 3), np.uint8)
        frame[:, : 10 * (i + 1)] = (0, 0, 255)  # blue, green, red: a growing red area
        writer.write(frame)
    writer.release()


def test_video(tmp_path, monkeypatch):
    video(tmp_path / "clip.mp4")
    monkeypatch.setattr(predict, "FRAMES_PER_LINE", 2)
    seen = []
    report = predict_files(predictor(), VARIABLES, INFO, tmp_path / "clip.mp4", tmp_path / "out", progress=seen.append)
    name = f"1/1 {tmp_path / 'clip.mp4'}"
    assert seen == [f"{name}: 2 frames", f"{name}: 4 frames", name]
    assert (report.images, report.frames, report.failed) == (0, 5, [])
    assert files(tmp_path / "out") == [*(f"clip/{i:06}.png" for i in range(5)), "clip_overlay.mp4"]
    for i in range(5):
        label = read(tmp_path / "out" / "clip" / f"{i:06}.png")
        assert label.shape == (48, 64)
        assert np.mean(label[:, : 10 * (i + 1) - 4] == 0) > 0.99
    capture = cv2.VideoCapture(str(tmp_path / "out" / "clip_overlay.mp4"))
    frames = [capture.read()[1] for _ in range(5)]
    assert not capture.read()[0] and capture.get(cv2.CAP_PROP_FPS) == 10
    capture.release()
    np.testing.assert_allclose(frames[4][24, 20], (0, 0, 228), atol=12)


class Promising:
    """A capture whose file claims a hundred frames."""

    capture = cv2.VideoCapture

    def __init__(self, path):
        self.inner = Promising.capture(path)
        self.read, self.release = self.inner.read, self.inner.release

    def get(self, key):
        return 100.0 if key == cv2.CAP_PROP_FRAME_COUNT else self.inner.get(key)


def test_videos_that_are_cut_off_keep_their_frames_and_are_named(tmp_path, monkeypatch):
    video(tmp_path / "clip.mp4")
    monkeypatch.setattr(cv2, "VideoCapture", Promising)
    report = predict_files(predictor(), VARIABLES, INFO, tmp_path / "clip.mp4", tmp_path / "out")
    assert report.frames == 5 and len(report.failed) == 1
    assert "clip.mp4: ends after 5 of 100 frames" in report.failed[0]
    assert files(tmp_path / "out") == [*(f"clip/{i:06}.png" for i in range(5)), "clip_overlay.mp4"]


def test_files_that_are_no_video_are_named(tmp_path, capfd):
    image = picture(tmp_path / "in" / "zz.png")
    (tmp_path / "in" / "bad.mp4").write_bytes(b"no video")
    report = predict_files(predictor(), VARIABLES, INFO, tmp_path / "in", tmp_path / "out")
    assert report.frames == 0 and len(report.failed) == 1 and "bad.mp4: no frame" in report.failed[0]
    np.testing.assert_array_equal(read(tmp_path / "out" / "zz.png"), expected(image))
    assert files(tmp_path / "out") == ["zz.png", "zz_overlay.jpg"]


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (["nothing.png"], "nothing.png: there is no such file"),
        ([], "--input is missing"),
        (["folder"], "no image or video"),
    ],
)
def test_bad_inputs(tmp_path, monkeypatch, inputs, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("")
    with pytest.raises(JaxsegError, match=says):
        predict_files(predictor(), VARIABLES, INFO, inputs, "out")


def test_results_never_replace_inputs_or_each_other(tmp_path):
    picture(tmp_path / "one" / "a.png")
    picture(tmp_path / "two" / "a.png")
    with pytest.raises(JaxsegError, match="would replace an input"):
        predict_files(predictor(), VARIABLES, INFO, tmp_path / "one", tmp_path / "one")
    with pytest.raises(JaxsegError, match="would replace another input's result"):
        predict_files(predictor(), VARIABLES, INFO, [tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_written(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(JaxsegError, match="cannot be written"):
        predict_files(predictor(), VARIABLES, INFO, tmp_path / "a.png", tmp_path / "out")


@pytest.mark.parametrize("options", [{"bucket_px": 0}, {"size_px": (3,)}, {"size_px": (0, 4)}])
def test_bad_sizes(tmp_path, options):
    picture(tmp_path / "a.png")
    with pytest.raises(JaxsegError, match="positive"):
        predict_files(predictor(), VARIABLES, INFO, tmp_path / "a.png", tmp_path / "out", **options)


@pytest.mark.slow
def test_command_after_training(tmp_path):
    workdir, log, source = tmp_path / "run", tmp_path / "log", tmp_path / "in"
    short = [
        f"--config.{key}" for key in ("train.total_steps=2", "optimizer.schedule.warmup_steps=0", "data.workers=0")
    ]
    runs.finish(runs.command(workdir, *short), log)
    picture(source / "a.png", (40, 61))
    (source / "bad.jpg").write_bytes(b"no picture")
    asked = ("--mode=predict", f"--input={source}", f"--output={tmp_path / 'out'}")
    printed = runs.finish(runs.command(workdir, *short, *asked), log, expect=predict.EXIT_CODE_FAILED_INPUTS)
    assert f"{source / 'bad.jpg'}: not an image" in printed and "1 images and 0 video frames" in printed
    assert files(tmp_path / "out") == ["a.png", "a_overlay.jpg"]
    with Image.open(tmp_path / "out" / "a.png") as label:
        assert label.size == (61, 40) and label.mode == "P" and np.asarray(label).max() < 21
