"""Boundary F1 against values by hand, the plain twin, and the conventions."""

import jax
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.metrics.boundaries import boundary_pixels, label_maps, squared_tolerance
from jaxseg.metrics.boundary_f1 import boundary_matches, build
from tests.metrics import boundary_twins as twins

ROW = np.asarray([[0, 0, 1, 1]]), np.asarray([[0, 1, 1, 1]])


def test_by_hand():
    labels, predictions = ROW
    got = boundary_matches(labels, predictions, num_classes=2, tolerance_px=0)
    np.testing.assert_array_equal(got, [[2, 1, 0, 1, 0], [2, 1, 0, 1, 0]])
    got = boundary_matches(labels, predictions, num_classes=2, tolerance_px=1)
    np.testing.assert_array_equal(got, [[2, 1, 1, 1, 1], [2, 1, 1, 1, 1]])


def test_scores_by_hand():
    """Class 0: 3 of 4 boundary pixels recalled, 1 of 2 precise: F = .6; class 1: nothing found; class 2: not there."""
    rows = np.asarray([[[9, 4, 3, 2, 1], [5, 2, 0, 0, 0], [0, 0, 0, 7, 0]], [[4, 1, 1, 1, 1], [0] * 5, [0] * 5]])
    got = build(num_classes=3).compute({"matches": rows.astype(np.int32)})
    assert got["boundary_f1"] == pytest.approx((0.3 + 1) / 2, abs=1e-15)
    assert got["boundary_precision"] == pytest.approx((0.5 + 1) / 2) and got["boundary_recall"] == (0.375 + 1) / 2
    np.testing.assert_allclose(got["boundary_f1_per_class"], [0.8, 0, np.nan], rtol=1e-15)


@pytest.mark.parametrize("outside", ["ignore", "background"])
@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("tolerance", [0, 1.5, 3])
def test_twin(outside, connectivity, tolerance):
    labels, predictions, where = twins.example()
    options = {"outside": outside, "connectivity": connectivity}
    got = boundary_matches(labels, predictions, num_classes=4, where=where, tolerance_px=tolerance, **options)
    for i in range(len(labels)):
        maps = twins.masked(labels[i], predictions[i], where[i], 4)
        np.testing.assert_array_equal(got[i], twins.matches(*maps, 4, tolerance**2, **options))
        pixels = boundary_pixels(label_maps(labels, predictions, where, num_classes=4)[0], **options)
        assert {tuple(map(int, p)) for p in np.argwhere(pixels[i])} == twins.boundary(maps[0], **options)


def test_the_tolerance_is_a_part_of_each_images_own_diagonal():
    labels, predictions, where = twins.example((3, 30, 40))
    size = np.asarray([[30, 40], [15, 20], [9, 12]], np.int32)
    got = boundary_matches(labels, predictions, num_classes=4, where=where, size=size, tolerance_fraction=0.1)
    for i, limit in enumerate((25, 6, 2)):  # (5, 2.5 and 1.5 px) squared
        maps = twins.masked(labels[i], predictions[i], where[i], 4)
        np.testing.assert_array_equal(got[i], twins.matches(*maps, 4, limit))


def test_tolerances_on_whole_pixels_are_exact():
    sides = np.asarray([(240, 320), (239, 320), (480, 640), (720, 960), (360, 480)])
    got = squared_tolerance(0.0075, np.sum(sides**2, axis=1).astype(np.int32), 960**2 + 720**2)
    np.testing.assert_array_equal(
        got, [9, 8, 36, 81, 20]
    )  # .0075 x 400 px = 3 px exactly; float32 gives 8 for the first


@pytest.mark.parametrize(("both_empty", "value"), [("skip", np.nan), ("one", 1.0)])
def test_a_class_that_fills_the_image(both_empty, value):
    metric = build(num_classes=2, both_empty=both_empty)
    labels = np.zeros((1, 5, 6), np.int32)
    got = metric.compute(jax.tree.map(np.asarray, metric.counts(labels, labels, where=labels == 0)))
    np.testing.assert_array_equal(got["boundary_f1"], value)
    got = metric.compute(
        jax.tree.map(np.asarray, metric.counts(labels, labels + (np.arange(6) > 3), where=labels == 0))
    )
    assert got["boundary_f1"] == 0  # a boundary where there is none
    metric = build(num_classes=2, outside="background")
    got = metric.compute(jax.tree.map(np.asarray, metric.counts(labels, labels, where=labels == 0)))
    assert got["boundary_f1"] == 1


@pytest.mark.parametrize(
    "options",
    [
        {"tolerance_px": -1},
        {"tolerance_fraction": 1.5},
        {"tolerance_fraction": float("nan")},
        {"outside": "void"},
        {"connectivity": 6},
        {"both_empty": "zero"},
    ],
)
def test_bad_options(options):
    with pytest.raises(JaxsegError, match=f"boundary_f1.{next(iter(options))}"):
        build(num_classes=2, **options)
