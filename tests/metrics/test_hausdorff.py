"""Hausdorff distances against values by hand, the plain twin, and the conventions."""

import jax
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.metrics.hausdorff import build, hausdorff_counts
from tests.metrics import boundary_twins as twins


def scores(metric, labels, predictions, where=None, size=None):
    where = np.ones(labels.shape, bool) if where is None else where
    return metric.compute(jax.tree.map(np.asarray, jax.jit(metric.counts)(labels, predictions, where=where, size=size)))


def test_by_hand():
    labels, predictions = np.asarray([[0, 1, 1, 0, 0]]), np.asarray([[0, 0, 0, 1, 0]])
    got = hausdorff_counts(labels, predictions, num_classes=2, points="region", percentiles=(100, 50))
    np.testing.assert_array_equal(got["points"][1], [2, 1])
    # Forward 2, 1; back 1; pooled 1, 1, 2. The median of 1 and 2 lies between them.
    np.testing.assert_array_equal(got["squared"][1, :, 0], [[4, 4], [1, 1], [4, 4]])
    np.testing.assert_array_equal(got["squared"][1, :, 1], [[1, 4], [1, 1], [1, 4]])
    got = scores(build(num_classes=2, points="region", percentiles=(100, 50)), labels[None], predictions[None])
    assert got["hausdorff_per_class"][1] == 2
    assert got["hd50_max_per_class"][1] == 1.5 and got["hd50_pooled_per_class"][1] == 1


@pytest.mark.parametrize(
    ("points", "outside", "connectivity", "spacing"),
    [
        ("boundary", "ignore", 4, 1.0),
        ("boundary", "background", 8, 0.5),
        ("region", "ignore", 4, (2.0, 2.0)),
        ("boundary", "background", 4, (1.5, 0.7)),
    ],
)
def test_twin(points, outside, connectivity, spacing):
    labels, predictions, where = twins.example()
    metric = build(
        num_classes=5,
        points=points,
        outside=outside,
        connectivity=connectivity,
        spacing=spacing,
        percentiles=(100, 95, 37.5),
        one_empty="diagonal",
    )
    got = scores(metric, labels, predictions, where)
    pair = spacing if isinstance(spacing, tuple) else (spacing, spacing)
    names = ("hausdorff", "hd95_max", "hd95_pooled", "hd37.5_max", "hd37.5_pooled")
    expected = {name: np.full((len(labels), 5), np.nan) for name in names}
    for i in range(len(labels)):
        for c in range(5):
            maps = twins.masked(labels[i], predictions[i], where[i], 5)
            there, found = (twins.surface(x, c, points, outside, connectivity) for x in maps)
            if not (there and found):
                value = np.hypot(17 * pair[0], 14 * pair[1]) if there or found else np.nan
                for name in names:
                    expected[name][i, c] = value
                continue
            a, b = twins.nearest(there, found, pair), twins.nearest(found, there, pair)
            expected["hausdorff"][i, c] = max(a.max(), b.max())
            for q in ("95", "37.5"):
                expected[f"hd{q}_max"][i, c] = max(np.percentile(a, float(q)), np.percentile(b, float(q)))
                expected[f"hd{q}_pooled"][i, c] = np.percentile(np.concatenate([a, b]), float(q))
    tolerance = 1e-6 if isinstance(spacing, tuple) and pair[0] != pair[1] else 1e-13
    for name in names:
        np.testing.assert_allclose(got[name], twins.image_mean(expected[name]), rtol=tolerance)
        per_class = [twins.nan_mean(column) for column in expected[name].T]
        np.testing.assert_allclose(got[f"{name}_per_class"], per_class, rtol=tolerance)


@pytest.mark.parametrize(("one_empty", "value"), [("inf", np.inf), ("diagonal", 5.0), ("skip", np.nan)])
def test_one_empty_and_both_empty(one_empty, value):
    labels = np.zeros((1, 3, 4), np.int32)
    labels[0, 1, 1] = 1
    got = scores(build(num_classes=3, points="region", one_empty=one_empty), labels, np.zeros_like(labels))
    assert got["hausdorff_per_class"][0] == 1
    for name in ("hausdorff_per_class", "hd95_max_per_class", "hd95_pooled_per_class"):
        np.testing.assert_array_equal(got[name][1:], [value, np.nan])
    padded = np.pad(labels, ((0, 0), (0, 5), (0, 5)))
    metric = build(num_classes=3, points="region", one_empty=one_empty)
    where = np.pad(np.ones(labels.shape, bool), ((0, 0), (0, 5), (0, 5)))
    again = scores(metric, padded, np.zeros_like(padded), where, np.asarray([[3, 4]], np.int32))
    np.testing.assert_array_equal(again["hausdorff_per_class"], got["hausdorff_per_class"])


def test_a_shift_by_k_pixels_is_at_most_k_away():
    labels = twins.example((1, 40, 40), seed=3)[0]
    labels[labels == 255] = 0
    inner = labels[:, 8:-8, 8:-8] + 1
    framed = np.pad(inner, ((0, 0), (8, 8), (8, 8)))
    for k in (1, 3, 5):
        got = scores(build(num_classes=5, points="region"), framed, np.roll(framed, k, axis=2))
        assert 0 < got["hausdorff"] <= k
        assert max(v for v in got["hausdorff_per_class"] if v == v) == k


@pytest.mark.parametrize(
    "options",
    [
        {"percentiles": ()},
        {"percentiles": (0,)},
        {"percentiles": (101,)},
        {"percentiles": (99.999,)},
        {"spacing": (1, 2, 3)},
        {"spacing": 0},
        {"points": "edge"},
        {"connectivity": 5},
        {"one_empty": "zero"},
        {"outside": None},
    ],
)
def test_bad_options(options):
    with pytest.raises(JaxsegError, match=f"hausdorff.{next(iter(options))}"):
        build(num_classes=2, **options)
