"""Calibration errors against hand values and the NumPy twin, exact however the pixels are split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.metrics import calibration
from jaxseg.metrics.calibration import build, calibration_counts, calibration_numpy, calibration_scores


def example(shape=(3, 7, 9), classes=4, seed=0):
    """Labels with void, probabilities of which the largest is right three times out of five, mask."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, shape).astype(np.int32)
    logits = rng.normal(0, 1, (*shape, classes)) + 2 * (rng.random(shape) < 0.6)[..., None] * np.eye(classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    labels = np.where(rng.random(shape) < 0.1, 255, labels).astype(np.int32)
    return labels, probabilities.astype(np.float32), rng.random(shape) < 0.8


def scores_of(metric, labels, probabilities, where):
    state = metric.state()
    state.update(jax.jit(lambda y, p, w: metric.counts(y, p, where=w))(labels, probabilities, where))
    return state.compute()


def test_by_hand():
    # Confidences 0.75 twice (one right), 1 (right), 0.5 (wrong), two bins: (0, 0.5] and (0.5, 1].
    probabilities = np.asarray([[[[0.75, 0.25], [0.25, 0.75], [0, 1], [0.5, 0.5]]]], np.float32)
    labels = np.asarray([[[0, 0, 1, 1]]], np.int32)
    result = scores_of(build(num_classes=2, bins=2), labels, probabilities, labels >= 0)
    # Second bin: accuracy 2/3, confidence 2.5/3; first bin: 0 and 0.5.
    assert result["reliability"] == {
        "pixels": [1.0, 3.0],
        "accuracy": [0.0, pytest.approx(2 / 3)],
        "confidence": [0.5, pytest.approx(2.5 / 3)],
    }
    assert result["expected_calibration_error"] == pytest.approx((1 * 0.5 + 3 * (0.5 / 3)) / 4)
    assert result["maximum_calibration_error"] == 0.5
    assert result["rms_calibration_error"] == pytest.approx(np.sqrt((0.25 + 3 * (0.5 / 3) ** 2) / 4))
    four = calibration_scores([4], [3], [3.6])
    assert four["expected_calibration_error"] == pytest.approx(0.15)


def test_the_edges_of_bins_are_exact():
    """A confidence on an edge falls below it: 0.3 as float32 is larger than 0.3, 0.7 and 0.1 are smaller or larger."""
    values = np.asarray([0.0, 0.1, 0.2, 0.25, 0.3, 0.5, 0.7, 0.75, 1.0], np.float32)
    for bins in (4, 10):
        probabilities = np.stack([values, np.zeros_like(values)], axis=-1)[None, None]
        counts = calibration_counts(np.zeros((1, 1, 9), np.int32), probabilities, bins=bins)
        q = np.round(values.astype(np.float64) * 2**24)
        expected = np.maximum(np.ceil(q * bins / 2**24).astype(int) - 1, 0)
        np.testing.assert_array_equal(counts["pixels"][0, 0], np.bincount(expected, minlength=bins))


@pytest.mark.parametrize("bins", [1, 15, 127])
@pytest.mark.parametrize("shape", [(3, 7, 9), (1, 1, 1), (2, 33, 5)])
def test_numpy_twin(bins, shape):
    labels, probabilities, where = example(shape)
    where[0, 0, 0], labels[0, 0, 0] = True, 1
    result = scores_of(build(num_classes=4, bins=bins), labels, probabilities, where)
    expected = calibration_numpy(labels, probabilities, bins=bins, where=where)
    for name in ("expected_calibration_error", "maximum_calibration_error", "rms_calibration_error"):
        assert result[name] == pytest.approx(expected[name], abs=1e-7)
    for name, values in expected["reliability"].items():
        np.testing.assert_allclose(result["reliability"][name], values, atol=1e-7)


def test_sums_of_confidences_are_those_of_integers():
    labels, probabilities, where = example()
    counts = {
        name: np.asarray(x, np.int64) for name, x in calibration_counts(labels, probabilities, where=where).items()
    }
    q = np.round(probabilities.max(axis=-1).astype(np.float64) * 2**24).astype(np.int64)
    valid = where & (labels < 4)
    total = (counts["high"] << 12) + counts["low"]
    assert total.sum() == q[valid].sum() and counts["pixels"].sum() == valid.sum()
    assert counts["hits"].sum() == np.sum(valid & (probabilities.argmax(axis=-1) == labels))


@pytest.mark.parametrize("chunk", [5, 63, 64])
def test_chunks_change_nothing(monkeypatch, chunk):
    labels, probabilities, where = example()
    whole = calibration_counts(labels, probabilities, where=where)
    monkeypatch.setattr(calibration, "_CHUNK", chunk)
    parts = calibration_counts(labels, probabilities, where=where)
    assert parts["pixels"].shape[1] == -(-63 // chunk)
    for name, value in whole.items():
        np.testing.assert_array_equal(parts[name].sum(axis=1), value[:, 0])


def test_masked_sums_equal_scatter():
    rng = np.random.default_rng(1)
    cell = jnp.asarray(rng.integers(0, 31, (2, 3, 40)), jnp.int32)
    q = jnp.asarray(rng.integers(0, (1 << 24) + 1, (2, 3, 40)), jnp.int32)
    by_scatter = calibration._by_scatter(cell, q, 30)
    np.testing.assert_array_equal(calibration._by_mask(cell, q, 30), by_scatter)
    for c in range(30):
        np.testing.assert_array_equal(by_scatter[1, ..., c], np.sum(np.where(cell == c, q >> 12, 0), axis=-1))


def test_no_overflow_where_everything_is_certain():
    """2^19 + 1 pixels of confidence 1 add up to more than 2^43 in units of 2^-24."""
    pixels = (1 << 19) + 1
    labels = np.zeros((1, 1, pixels), np.int32)
    probabilities = jnp.broadcast_to(jnp.asarray([1.0, 0.0]), (1, 1, pixels, 2))
    result = scores_of(build(num_classes=2, bins=3), labels, probabilities, labels == 0)
    assert result["reliability"]["pixels"] == [0, 0, pixels] and result["reliability"]["confidence"][2] == 1
    assert result["expected_calibration_error"] == 0


def test_nan_counts_as_no_confidence_and_nothing_outside_counts():
    labels, probabilities, where = example()
    spoiled = np.where(where[..., None], probabilities, np.nan).astype(np.float32)
    metric = build(num_classes=4)
    np.testing.assert_equal(scores_of(metric, labels, spoiled, where), scores_of(metric, labels, probabilities, where))
    lost = calibration_counts(labels, np.full_like(probabilities, np.nan), where=where)
    assert lost["high"].sum() == lost["low"].sum() == 0 and lost["pixels"][..., 0].sum() == lost["pixels"].sum() > 0


def test_all_void():
    labels, probabilities, where = example()
    result = scores_of(build(num_classes=4), labels, probabilities, np.zeros_like(where))
    assert np.isnan(result["expected_calibration_error"]) and np.all(np.isnan(result["reliability"]["accuracy"]))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"labels": np.zeros((3, 7, 9), np.float32)}, TypeError, "integers"),
        ({"probabilities": np.zeros((3, 7, 9, 4), np.int32)}, TypeError, "floats"),
        ({"where": np.ones((3, 7, 9), np.int32)}, TypeError, "bool"),
        ({"where": np.ones((3, 7, 8), bool)}, ValueError, "give \\[b, h, w\\]"),
        ({"bins": 128}, ValueError, "bins = 128"),
        ({"probabilities": 3 * example()[1]}, ValueError, "softmax"),
    ],
)
def test_bad_input(change, error, says):
    labels, probabilities, where = example()
    arguments = {"labels": labels, "probabilities": probabilities, "where": where} | change
    with pytest.raises(error, match=says):
        calibration_counts(arguments.pop("labels"), arguments.pop("probabilities"), **arguments)


def test_bad_options():
    with pytest.raises(JaxsegError, match="calibration.bins = 0"):
        build(num_classes=2, bins=0)
    with pytest.raises(ValueError, match="\\[b, h, w, 3\\]"):
        build(num_classes=3).counts(*example()[:2], where=None)
