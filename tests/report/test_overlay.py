import numpy as np
import pytest
from PIL import Image

from jaxseg.core.errors import JaxsegError
from jaxseg.core.types import DatasetInfo
from jaxseg.report.overlay import colorize, overlay, save_palette_png
from tests.report.results import INFO

LABEL = np.asarray([[0, 1], [255, 2]], np.int32)


def test_each_class_has_its_colour():
    expected = [[(10, 20, 30), (200, 0, 0)], [INFO.void_color, (0, 0, 250)]]
    np.testing.assert_array_equal(colorize(LABEL, INFO), np.asarray(expected, np.uint8))
    assert colorize(LABEL, INFO).dtype == np.uint8
    stacked = colorize(np.stack([LABEL, LABEL.T]).astype(np.uint8), INFO)
    np.testing.assert_array_equal(stacked[1, 0, 1], INFO.void_color)


def test_void_right_after_the_classes():
    info = DatasetInfo("camvid-like", ("a",), ((1, 2, 3),), 1, void_color=(9, 9, 9))
    np.testing.assert_array_equal(colorize(np.asarray([[0, 1]]), info), [[(1, 2, 3), (9, 9, 9)]])


@pytest.mark.parametrize("value", [3, -1, 254])
def test_values_that_are_neither_class_nor_void_are_named(value):
    with pytest.raises(JaxsegError, match=rf"tiny: the label map holds \[{value}\].* 0\.\.2 and void, 255"):
        colorize(np.asarray([[0, value]]), INFO)


def test_a_label_of_floats_is_refused():
    with pytest.raises(TypeError, match="integers, not float64"):
        colorize(np.zeros((2, 2)), INFO)


def test_overlay_mixes_classes_and_leaves_void():
    image = np.full((2, 2, 3), 100, np.uint8)
    expected = [[(32, 40, 48), (175, 25, 25)], [(100, 100, 100), (25, 25, 212)]]  # 0.25 * 100 + 0.75 * colour, rounded
    np.testing.assert_array_equal(overlay(image, LABEL, INFO, alpha=0.75), np.asarray(expected, np.uint8))
    np.testing.assert_array_equal(overlay(image, LABEL, INFO, alpha=0.0), image)
    opaque = overlay(image, LABEL, INFO, alpha=1.0)
    np.testing.assert_array_equal(opaque[LABEL != 255], colorize(LABEL, INFO)[LABEL != 255])


def test_overlay_needs_one_size_and_bytes():
    with pytest.raises(ValueError, match="does not fit the label's shape"):
        overlay(np.zeros((2, 3, 3), np.uint8), LABEL, INFO)
    with pytest.raises(ValueError, match="float32"):
        overlay(np.zeros((2, 2, 3), np.float32), LABEL, INFO)
    with pytest.raises(ValueError, match="alpha"):
        overlay(np.zeros((2, 2, 3), np.uint8), LABEL, INFO, alpha=1.5)


def test_palette_png_holds_ids_and_colours(tmp_path):
    path = tmp_path / "new" / "label.png"
    save_palette_png(path, LABEL, INFO)
    with Image.open(path) as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), LABEL)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), colorize(LABEL, INFO))
    assert [p.name for p in path.parent.iterdir()] == ["label.png"]


def test_palette_png_of_more_than_256_classes_is_refused(tmp_path):
    many = DatasetInfo("many", tuple(map(str, range(300))), ((0, 0, 0),) * 300, 300)
    save_palette_png(tmp_path / "low.png", np.asarray([[255, 0]]), many)
    with pytest.raises(JaxsegError, match="many: label values up to 300 do not fit"):
        save_palette_png(tmp_path / "x.png", np.asarray([[300, 0]]), many)
    with pytest.raises(ValueError, match=r"\[h, w\]"):
        save_palette_png(tmp_path / "x.png", np.zeros((1, 2, 2), np.int32), INFO)
    assert not (tmp_path / "x.png").exists()
