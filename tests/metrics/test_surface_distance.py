"""Surface distances against values by hand, the plain twin, and the conventions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.metrics.surface_distance import build
from jaxseg.metrics.surfaces import FRACTION_BITS, exact_sum, fixed_point, sum_of_parts
from tests.metrics import boundary_twins as twins


def scores(metric, labels, predictions, where=None, size=None):
    where = np.ones(labels.shape, bool) if where is None else where
    return metric.compute(jax.tree.map(np.asarray, jax.jit(metric.counts)(labels, predictions, where=where, size=size)))


def test_pixels_by_hand():
    """Boundary of class 1: pixels 2 and 3 against 4 and 5; distances 2, 1 and 1, 2."""
    labels, predictions = np.asarray([[[0, 0, 1, 1, 0, 0, 0]]]), np.asarray([[[0, 0, 0, 0, 1, 1, 0]]])
    got = scores(build(num_classes=2, tolerances=(0, 1, 2)), labels, predictions)
    for name in ("asd_truth_to_prediction", "asd_prediction_to_truth", "assd_pooled", "assd_mean"):
        assert got[f"{name}_per_class"][1] == 1.5
    assert [got[f"surface_dice_{t}_per_class"][1] for t in (0, 1, 2)] == [0, 0.5, 1]


def test_surfels_by_hand():
    """One pixel has four diagonal elements, a chessboard's centre two in one corner."""
    labels = np.zeros((1, 3, 3), np.int32)
    labels[0, 1, 1] = 1
    metric = build(num_classes=2, elements="surfels", spacing=2.0)
    got = jax.tree.map(np.asarray, metric.counts(labels, labels, where=labels >= 0))
    np.testing.assert_array_equal(got["elements"][0, 1], [[0, 0, 4]] * 2)
    board = np.asarray([[[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]]])
    got = jax.tree.map(np.asarray, metric.counts(board, labels[:, [0, 0, 1, 2]], where=board >= 0))
    # Below row 0 a chessboard (two diagonals) and one pixel of four; below it vertical sides; the edge is ignored.
    np.testing.assert_array_equal(got["elements"][0, 1, 0], [0, 4, 3])


@pytest.mark.parametrize("elements", ["pixels", "surfels"])
@pytest.mark.parametrize("outside", ["ignore", "background"])
@pytest.mark.parametrize("spacing", [1.0, 0.5, (1.5, 0.7)])
def test_twin(elements, outside, spacing):
    labels, predictions, where = twins.example()
    tolerances = (1.0, 2.5)
    metric = build(
        num_classes=5, elements=elements, outside=outside, spacing=spacing, tolerances=tolerances, one_empty="skip"
    )
    got = scores(metric, labels, predictions, where)
    pair = spacing if isinstance(spacing, tuple) else (spacing, spacing)
    names = ("asd_truth_to_prediction", "asd_prediction_to_truth", "assd_pooled", "assd_mean")
    expected = {name: np.full((len(labels), 5), np.nan) for name in (*names, "surface_dice_1", "surface_dice_2.5")}
    for i in range(len(labels)):
        for c in range(5):
            maps = twins.masked(labels[i], predictions[i], where[i], 5)
            if elements == "pixels":
                there, found = ({p: 1.0 for p in twins.surface(x, c, outside=outside)} for x in maps)
            else:
                there, found = (twins.contour(x, c, outside, pair) for x in maps)
            if not (there and found):
                for t in ("1", "2.5"):
                    expected[f"surface_dice_{t}"][i, c] = 0 if there or found else np.nan
                continue
            a, b = twins.nearest(there, found, pair), twins.nearest(found, there, pair)
            u, v = np.asarray([*there.values()]), np.asarray([*found.values()])
            one, two = (a * u).sum() / u.sum(), (b * v).sum() / v.sum()
            pooled = ((a * u).sum() + (b * v).sum()) / (u.sum() + v.sum())
            for name, value in zip(names, (one, two, pooled, (one + two) / 2), strict=True):
                expected[name][i, c] = value
            for t in tolerances:
                close = (u * (a <= t + 1e-9)).sum() + (v * (b <= t + 1e-9)).sum()
                expected[f"surface_dice_{t:g}"][i, c] = close / (u.sum() + v.sum())
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], twins.image_mean(values), rtol=3e-7, err_msg=name)
        per_class = [twins.nan_mean(column) for column in values.T]
        np.testing.assert_allclose(got[f"{name}_per_class"], per_class, rtol=3e-7, err_msg=name)


@pytest.mark.parametrize("elements", ["pixels", "surfels"])
@pytest.mark.parametrize(("one_empty", "value"), [("inf", np.inf), ("diagonal", 13.0), ("skip", np.nan)])
def test_one_empty_and_both_empty(elements, one_empty, value):
    labels = np.zeros((1, 5, 12), np.int32)
    labels[0, 2, 2] = 1
    got = scores(build(num_classes=3, one_empty=one_empty, elements=elements), labels, np.zeros_like(labels))
    for name in ("asd_truth_to_prediction", "asd_prediction_to_truth", "assd_pooled", "assd_mean"):
        np.testing.assert_array_equal(got[f"{name}_per_class"], [value, value, np.nan])
    np.testing.assert_array_equal(got["surface_dice_1_per_class"], [0, 0, np.nan])


def test_distances_in_fixed_point():
    squared = np.concatenate([np.arange(200_000), 2**30 - 1 - np.arange(1000), np.arange(1, 32768) ** 2 - 1])
    whole, rest = jax.jit(fixed_point)(squared.astype(np.int32))
    got = np.asarray(whole) + np.asarray(rest) / 2.0**FRACTION_BITS
    np.testing.assert_allclose(got, np.sqrt(squared), rtol=0, atol=2.0**-23)
    np.testing.assert_array_equal(np.asarray(rest)[np.arange(447) ** 2], 0)


def test_sums_are_exact_beyond_32_bits():
    values = np.random.default_rng(0).integers(0, 2**30, (2, 300, 411))
    parts = jax.jit(exact_sum)(jnp.asarray(values, jnp.int32))
    np.testing.assert_array_equal(sum_of_parts(np.asarray(parts)), values.sum(axis=(1, 2)))


@pytest.mark.parametrize(
    "options",
    [
        {"elements": "voxels"},
        {"tolerances": (-1,)},
        {"spacing": (0, 1)},
        {"connectivity": 5},
        {"one_empty": "zero"},
        {"outside": "edge"},
    ],
)
def test_bad_options(options):
    with pytest.raises(JaxsegError, match=f"surface_distance.{next(iter(options))}"):
        build(num_classes=2, **options)
