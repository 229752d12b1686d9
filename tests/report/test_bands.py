"""Bands of rows against the whole picture; bounded overlays; files that appear whole or not at all."""

import numpy as np
import pytest
from PIL import Image

from jaxseg.core.errors import JaxsegError
from jaxseg.report.bands import OverlayBands, palette_png_bands
from jaxseg.report.overlay import overlay, palette_png
from tests.report.results import INFO


def drawn(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.choice([0, 1, 2, 255], (height, width)), rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_bands_make_the_picture_of_the_whole_label(tmp_path):
    label, _ = drawn(23, 17)
    path = tmp_path / "new" / "a.png"
    with palette_png_bands(path, label.shape, INFO) as add:
        for top, below in ((0, 5), (5, 6), (6, 23)):
            assert not path.exists()
            add(label[top:below].astype(np.int32))
    (tmp_path / "whole.png").write_bytes(palette_png(label, INFO))
    with Image.open(path) as ours, Image.open(tmp_path / "whole.png") as whole:
        assert ours.mode == whole.mode == "P" and ours.getpalette() == whole.getpalette()
        np.testing.assert_array_equal(np.asarray(ours), label)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize("heights", [(3, 3), (3, 5)])
def test_bands_that_do_not_fit_leave_no_file(tmp_path, heights):
    label, _ = drawn(8, 6)
    with (
        pytest.raises(ValueError, match="6 rows of 7|up to row 8"),
        palette_png_bands(tmp_path / "a", (7, 6), INFO) as add,
    ):
        for n in heights:
            add(label[:n])
    with pytest.raises(ValueError, match="does not fit"), palette_png_bands(tmp_path / "a", (7, 5), INFO) as add:
        add(label[:7])
    with pytest.raises(JaxsegError, match=r"\[7\]"), palette_png_bands(tmp_path / "a", (8, 6), INFO) as add:
        add(np.full((8, 6), 7))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [(23, 17), (1, 400), (400, 1), (20, 20)])
@pytest.mark.parametrize("max_pixels", [10_000, 100, 30])
def test_overlay_of_bands_is_the_overlay_of_every_kth_pixel(size, max_pixels):
    label, image = drawn(*size)
    bands = OverlayBands(image, INFO, 0.5, max_pixels=max_pixels)
    for top in range(0, size[0], 6):
        bands.add(label[top : top + 6])
    k = bands.step
    assert k == 1 or (k - 1) ** 2 < size[0] * size[1] / max_pixels <= k**2
    row, column = (min(k // 2, n // 2) for n in size)
    np.testing.assert_array_equal(bands.picture, overlay(image, label, INFO, 0.5)[row::k, column::k])
    assert bands.picture.size > 0
