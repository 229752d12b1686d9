import io

import numpy as np
import pytest
from PIL import Image

from jaxseg.report.curves import curve, curves_png, running_mean
from jaxseg.report.overlay import overlay
from jaxseg.report.samples import OVERLAY_ALPHA, Samples, sample_picture
from tests.report.results import INFO, result, sample


def test_the_three_panels_stand_beside_each_other():
    image, label, prediction = sample(200, 300)
    picture = sample_picture(image, label, prediction, INFO)
    assert picture.shape == (22 + 200 + 16 + 22, 3 * 300 + 4 * 8, 3)
    rows = slice(22, 222)
    np.testing.assert_array_equal(picture[rows, 8:308], image)
    np.testing.assert_array_equal(picture[rows, 316:616], overlay(image, label, INFO, OVERLAY_ALPHA))
    np.testing.assert_array_equal(picture[rows, 624:924], overlay(image, prediction, INFO, OVERLAY_ALPHA))


def test_the_legend_names_the_classes_that_appear():
    image, label, prediction = sample(200, 300)
    legend = sample_picture(image, label, prediction, INFO)[238:].reshape(-1, 3)
    colors = {tuple(color) for color in legend.tolist()}
    assert {INFO.colors[0], INFO.colors[1]} <= colors
    assert INFO.colors[2] not in colors and INFO.void_color not in colors


def test_a_legend_that_is_too_long_goes_on_in_the_next_line():
    names = tuple(f"a rather long name of a class {i}" for i in range(12))
    info = type(INFO)("long", names, tuple((i, 0, 0) for i in range(12)), 255)
    label = np.arange(12, dtype=np.int32).reshape(1, 12).repeat(260, axis=1).repeat(40, axis=0)[:, :260]
    picture = sample_picture(np.zeros((40, 260, 3), np.uint8), label % 12, np.zeros((40, 260), np.int32), info)
    assert (picture.shape[0] - 22 - 40 - 16) % 22 == 0


@pytest.mark.parametrize(
    ("height", "width", "panel"),
    [(33, 65, (132, 260)), (1, 1, (256, 256)), (900, 3, (900, 3)), (1100, 2200, (512, 1024))],
)
def test_small_pictures_are_enlarged_and_large_ones_reduced(height, width, panel):
    picture = sample_picture(*sample(height, width), INFO)
    panel_width = (picture.shape[1] - 4 * 8) // 3
    legend = picture.shape[0] - 22 - 16 - panel[0]
    assert panel_width == panel[1]
    assert legend % 22 == 0 and legend > 0


def test_each_evaluation_has_its_folder(tmp_path):
    Samples(tmp_path).on_evaluation(1000, result(samples=2), INFO)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert files == ["samples/step_00001000/00.png", "samples/step_00001000/01.png"]
    with Image.open(tmp_path / files[1]) as picture:
        np.testing.assert_array_equal(np.asarray(picture), sample_picture(*sample(seed=1), INFO))


def test_a_curve_takes_the_records_that_have_the_key():
    records = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "miou_present": 0.5},
        {"step": 3, "loss": None},
        {"step": 4, "loss": 1},
    ]
    assert curve(records, "loss") == ([1, 4], [2.0, 1.0])
    assert curve(records, "miou_present") == ([2], [0.5])


def test_running_mean_looks_back():
    assert running_mean([1.0, 2.0, 6.0, 10.0], 3) == [1.0, 1.5, 3.0, 6.0]
    assert running_mean([], 3) == []


def blue_pixels(records):
    with Image.open(io.BytesIO(curves_png(records))) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    return int((pixels == (0x1F, 0x5F, 0xA8)).all(axis=1).sum())


def test_curves_draw_what_there_is():
    logs = [{"step": i, "loss": 1 / i, "learning_rate": 0.1} for i in range(1, 80)]
    none, some = blue_pixels([]), blue_pixels(logs)
    assert none == 0
    assert some > 300
    assert blue_pixels([*logs, {"step": 40, "miou_present": 0.2}, {"step": 79, "miou_present": 0.6}]) > some
