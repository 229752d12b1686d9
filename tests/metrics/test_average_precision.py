"""Average precision: hand values, a plain-loop twin, matching, ties, crowds, void, and the metric of a config."""

import jax
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.metrics.average_precision import (
    INTERPOLATIONS,
    average_precision,
    build,
    match_images,
    precision_scores,
)
from jaxseg.metrics.regions import Regions, component_regions, match, overlaps, region_areas


def regions(ids, classes, scores=None, **options):
    scores = np.ones(len(classes)) if scores is None else np.asarray(scores, np.float64)
    return Regions(np.asarray(classes), scores, ids=np.asarray(ids), **options)


def as_masks(found):
    masks = found.ids[None] == np.arange(len(found.classes))[:, None, None]
    return Regions(found.classes, found.scores, masks=masks, crowd=found.crowd)


def random_regions(rng, shape=(9, 11), count=6, classes=2):
    """Rectangles on each other, so that some are cut and some hidden."""
    ids = np.full(shape, -1)
    for k in range(count):
        top, left = rng.integers(0, shape[0] - 1), rng.integers(0, shape[1] - 1)
        ids[top : top + rng.integers(1, 6), left : left + rng.integers(1, 6)] = k
    return regions(ids, rng.integers(0, classes, count), rng.permutation(count) / count + rng.random() / 100)


def twin(scores, found, truths, interpolation):
    """The definitions, with loops over every distinct score as a cut."""
    points = []
    for cut in sorted(set(scores), reverse=True):
        above = [f for s, f in zip(scores, found, strict=True) if s >= cut and f != 2]
        if above:
            points.append((sum(f == 1 for f in above) / truths, sum(f == 1 for f in above) / len(above)))

    def best(recall):
        return max((p for r, p in points if r >= recall - 1e-12), default=0.0)

    if interpolation in ("coco", "11_point"):
        steps = 100 if interpolation == "coco" else 10
        return sum(best(k / steps) for k in range(steps + 1)) / (steps + 1)
    area, before = 0.0, 0.0
    for recall, precision in points:
        area += (recall - before) * (precision if interpolation == "none" else best(recall))
        before = recall
    return area


def test_by_hand():
    scores, found = [0.9, 0.8, 0.7], [1, 0, 1]
    # Points (recall, precision): (1/2, 1), (1/2, 1/2), (1, 2/3).
    assert average_precision(scores, found, 2, interpolation="voc") == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    assert average_precision(scores, found, 2, interpolation="11_point") == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert average_precision(scores, found, 2, interpolation="coco") == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision(scores, found, 2, interpolation="none") == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    # Never found: recall stays below 1/2, so 6 of 11 points remain.
    assert average_precision(scores, [1, 0, 0], 2, interpolation="11_point") == pytest.approx(6 / 11)
    assert np.isnan(average_precision(scores, found, 0))
    assert [average_precision([], [], 3, interpolation=i) for i in INTERPOLATIONS] == [0.0] * 4
    assert average_precision(scores, [1, 2, 1], 2) == 1.0


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("seed", range(8))
def test_twin_with_ties_in_any_order(interpolation, seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 40))
    scores, found = rng.integers(0, 12, count) / 12, rng.integers(0, 3, count)
    truths = max(1, int(np.sum(found == 1)) + int(rng.integers(0, 6)))
    value = average_precision(scores, found, truths, interpolation=interpolation)
    assert value == pytest.approx(twin(scores, found, truths, interpolation), abs=1e-12)
    order = rng.permutation(count)
    assert average_precision(scores[order], found[order], truths, interpolation=interpolation) == value


def test_overlaps_are_exact_counts():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        predicted, truth, where = random_regions(rng), random_regions(rng, count=4), rng.random((9, 11)) < 0.8
        got = overlaps(predicted, truth, where=where)
        for n in range(6):
            for m in range(4):
                assert got[0][n, m] == np.sum((predicted.ids == n) & (truth.ids == m) & where)
        assert got[1].tolist() == [np.sum((predicted.ids == n) & where) for n in range(6)]
        assert got[2].tolist() == [np.sum((truth.ids == m) & where) for m in range(4)]
        for a, b in ((as_masks(predicted), as_masks(truth)), (predicted, as_masks(truth))):
            for one, other in zip(got, overlaps(a, b, where=where), strict=True):
                np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(region_areas(truth, where), got[2])
        np.testing.assert_array_equal(region_areas(as_masks(truth), where), got[2])


def test_a_hit_needs_the_threshold_exactly_and_the_class():
    # 11 of 20 pixels.
    truth = regions([[0] * 11 + [0] * 9], [1])
    predicted = regions([[0] * 11 + [-1] * 9], [1])
    assert match(predicted, truth, (0.5, 0.55, 0.56)).tolist() == [[1, 1, 0]]
    assert match(regions(predicted.ids, [0]), truth, (0.5,)).tolist() == [[0]]


def test_the_surest_comes_first_and_a_truth_is_found_once():
    truth = Regions(np.asarray([0]), np.ones(1), masks=np.ones((1, 1, 4), bool))
    masks = np.asarray([[[True, True, True, False]], [[True, True, True, True]]])
    predicted = Regions(np.asarray([0, 0]), np.asarray([0.9, 0.8]), masks=masks)
    assert match(predicted, truth, (0.5,)).tolist() == [[1], [0]]
    # Where only the second reaches the threshold, it is the hit.
    assert match(predicted, truth, (0.9,)).tolist() == [[0], [1]]


def test_images_without_regions():
    none = Regions(np.zeros(0, np.int64), np.zeros(0), masks=np.zeros((0, 2, 3), bool))
    some = Regions(np.asarray([1]), np.ones(1), masks=np.ones((1, 2, 3), bool))
    rows = match_images([(none, some), (some, none), (none, none)], num_classes=2, thresholds=(0.5,))
    assert rows["truths"].tolist() == [[0, 1], [0, 0], [0, 0]] and rows["found"].tolist() == [[0]]


def test_crowds_and_void_are_neither_hits_nor_misses():
    truth = regions([[0, 0, 0, 0, 0, 0, 1, 1]], [0, 0], crowd=np.asarray([True, False]))
    predicted = regions([[0, 0, -1, 1, -1, -1, 2, 2]], [0, 0, 0], [0.9, 0.8, 0.7])
    assert match(predicted, truth, (0.5,)).tolist() == [[2], [2], [1]]
    rows = match_images([(predicted, truth)], num_classes=1, thresholds=(0.5,))
    assert rows["truths"].tolist() == [[1]]
    assert precision_scores(rows, thresholds=(0.5,))["mean_average_precision"] == 1.0
    where = np.asarray([[False] * 6 + [True] * 2])
    rows = match_images([(predicted, truth, where)], num_classes=1, thresholds=(0.5,))
    assert rows["found"].tolist() == [[2], [2], [1]]
    without = match_images([(predicted, truth, ~where)], num_classes=1, thresholds=(0.5,))
    assert without["truths"].tolist() == [[0]] and without["found"].tolist() == [[2], [2], [2]]


def test_components_and_their_scores():
    labels = np.asarray([[0, 0, 1], [1, 0, 1], [0, 1, 1], [-1, 2, 2]])
    confidence = np.arange(12).reshape(4, 3) << 20
    found = component_regions(labels, confidence, connectivity=4)
    assert found.classes.tolist() == [0, 0, 1, 1, 2]
    np.testing.assert_array_equal(found.ids, [[0, 0, 2], [3, 0, 2], [1, 2, 2], [-1, 4, 4]])
    np.testing.assert_allclose(found.scores * 16, [(0 + 1 + 4) / 3, 6, (2 + 5 + 7 + 8) / 4, 3, 10.5])
    assert component_regions(labels).classes.tolist() == [0, 1, 2]  # diagonals connect
    cut = component_regions(labels, where=labels != 0)
    assert cut.classes.tolist() == [1, 2]
    assert component_regions(np.full((2, 2), -1)).classes.tolist() == []


def example(seed=0, shape=(4, 10, 12), classes=3):
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(shape[-2:])
    labels = np.stack([(rows // 4 + columns // 4 + i) % classes for i in range(shape[0])]).astype(np.int32)
    logits = rng.normal(0, 1, (*shape, classes)) + 2.5 * np.eye(classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return labels, probabilities.astype(np.float32), rng.random(shape) < 0.95


def test_the_metric_of_a_config_equals_its_parts():
    labels, probabilities, where = example()
    metric = build(num_classes=3, thresholds=(0.25, 0.5), interpolation="voc")
    state = metric.state()
    state.update(jax.jit(lambda y, p, w: metric.counts(y, p, where=w))(labels, probabilities, where))
    result = state.compute()
    q = np.round(probabilities.max(axis=-1).astype(np.float64) * 2**24).astype(np.int64)
    pairs = [
        (component_regions(p.argmax(axis=-1), c, where=w), component_regions(y, where=w))
        for y, p, c, w in zip(labels, probabilities, q, where, strict=True)
    ]
    rows = match_images(pairs, num_classes=3, thresholds=(0.25, 0.5))
    expected = precision_scores(rows, thresholds=(0.25, 0.5), interpolation="voc")
    assert result == expected and 0 < result["mean_average_precision"] < 1
    table = result["average_precision_by_threshold"]
    assert table["threshold"] == [0.25, 0.5] and np.mean(table["mean_average_precision"]) == pytest.approx(
        result["mean_average_precision"]
    )
    assert result["mean_average_precision_50"] == table["mean_average_precision"][1]


def test_a_perfect_prediction_and_an_absent_class():
    labels = np.asarray([[[0, 0, 1, 1]]], np.int32)
    metric = build(num_classes=3)
    state = metric.state()
    state.update(metric.counts(labels, np.eye(3, dtype=np.float32)[labels], where=labels >= 0))
    result = state.compute()
    assert result["mean_average_precision"] == result["mean_average_precision_75"] == 1.0
    np.testing.assert_array_equal(result["average_precision"], [1.0, 1.0, np.nan])


def test_bad_input():
    for options in ({"thresholds": ()}, {"thresholds": (0.0,)}, {"interpolation": "x"}, {"connectivity": 6}):
        with pytest.raises(JaxsegError, match="config.evaluate.metrics.average_precision"):
            build(num_classes=2, **options)
    with pytest.raises(JaxsegError, match="interpolation"):
        average_precision([1.0], [1], 1, interpolation="area")
    ids = np.asarray([[0, 1]])
    with pytest.raises(ValueError, match="there are 1 regions"):
        regions(ids, [0])
    with pytest.raises(ValueError, match="one of the two"):
        Regions(np.zeros(2), np.ones(2))
    with pytest.raises(ValueError, match="finite"):
        regions(ids, [0, 0], [1.0, np.nan])
    with pytest.raises(ValueError, match="class is not in"):
        match_images([(regions(ids, [0, 5]), regions(ids, [0, 0]))], num_classes=3)
    with pytest.raises(ValueError, match="different size"):
        overlaps(regions(ids, [0, 0]), regions(np.asarray([[0, 1, 1]]), [0, 0]))
    with pytest.raises(ValueError, match="probabilities"):
        build(num_classes=2).counts(np.zeros((1, 2, 2), np.int32), np.zeros((1, 2, 2, 3), np.float32))
