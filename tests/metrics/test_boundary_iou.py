"""Boundary IoU against values by hand, the plain twin, and the conventions."""

import math

import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.metrics.boundaries import rounded_width
from jaxseg.metrics.boundary_iou import band_counts, build
from tests.metrics import boundary_twins as twins

LABELS, PREDICTIONS = np.asarray([[0, 0, 0, 1, 1, 1]]), np.asarray([[0, 0, 1, 1, 1, 1]])


@pytest.mark.parametrize("distance", ["chessboard", "euclidean"])
def test_by_hand(distance):
    got = band_counts(LABELS, PREDICTIONS, num_classes=2, width_px=1, distance=distance)
    np.testing.assert_array_equal(got, [[0, 1, 1], [0, 1, 1]])
    got = band_counts(LABELS, PREDICTIONS, num_classes=2, width_px=2, distance=distance)
    np.testing.assert_array_equal(got, [[1, 2, 2], [1, 2, 2]])


def test_bands_differ_at_a_corner():
    """A pixel is 1 from a diagonal neighbour on the chessboard, and sqrt 2 in the plane."""
    labels = np.asarray([[1, 0], [0, 0]])
    np.testing.assert_array_equal(band_counts(labels, labels, num_classes=2, width_px=1)[0], [3, 3, 3])
    euclidean = band_counts(labels, labels, num_classes=2, width_px=1, distance="euclidean")
    np.testing.assert_array_equal(euclidean[0], [2, 2, 2])


def test_scores_by_hand():
    got = build(num_classes=3).compute({"bands": np.asarray([[1, 2, 3], [0, 0, 5], [0, 0, 0]])})
    np.testing.assert_array_equal(got["boundary_iou"], [0.25, 0, np.nan])
    assert got["mean_boundary_iou"] == 0.125


@pytest.mark.parametrize("outside", ["ignore", "background"])
@pytest.mark.parametrize("distance", ["chessboard", "euclidean"])
@pytest.mark.parametrize("width", [1, 3])
def test_twin(outside, distance, width):
    labels, predictions, where = twins.example()
    options = {"distance": distance, "outside": outside}
    got = band_counts(labels, predictions, num_classes=4, where=where, width_px=width, **options)
    for i in range(len(labels)):
        maps = twins.masked(labels[i], predictions[i], where[i], 4)
        np.testing.assert_array_equal(got[i], twins.bands(*maps, 4, width, **options))


@pytest.mark.parametrize("distance", ["chessboard", "euclidean"])
def test_the_width_is_a_part_of_each_images_own_diagonal(distance):
    labels, predictions, where = twins.example((3, 30, 40))
    size = np.asarray([[30, 40], [15, 20], [9, 12]], np.int32)
    options = {"distance": distance, "width_fraction": 0.1}
    got = band_counts(labels, predictions, num_classes=4, where=where, size=size, **options)
    for i, width in enumerate((5, 2, 2)):  # 5, 2.5 (halves to even), 1.5
        maps = twins.masked(labels[i], predictions[i], where[i], 4)
        np.testing.assert_array_equal(got[i], twins.bands(*maps, 4, width, distance))


def test_rounding_is_that_of_python():
    squares = np.arange(2, 20_000, dtype=np.int32)
    expected = [max(1, round(0.02 * math.sqrt(n))) for n in squares]
    np.testing.assert_array_equal(rounded_width(0.02, squares, 20_000), expected)
    halves = np.asarray([(25 * k) ** 2 for k in range(1, 12)], np.int32)
    np.testing.assert_array_equal(rounded_width(0.02, halves, 10**6), [max(1, round(k / 2)) for k in range(1, 12)])


@pytest.mark.parametrize(
    "options", [{"width_fraction": 0}, {"width_px": 0}, {"width_px": 1.5}, {"distance": "city"}, {"outside": ""}]
)
def test_bad_options(options):
    with pytest.raises(JaxsegError, match=f"boundary_iou.{next(iter(options))}"):
        build(num_classes=2, **options)
