"""Confusion counts and scores against hand values, the NumPy twin, and their contracts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.mesh import batch_sharding, make_mesh
from jaxseg.metrics import confusion
from jaxseg.metrics.confusion import build, confusion_counts, confusion_numpy, scores

# From the spec of the metrics, by hand: four classes, the last in neither, one void pixel.
LABELS = np.asarray([0, 0, 1, 1, 2, 255], np.int32)
PREDICTIONS = np.asarray([0, 1, 1, 1, 1, 2], np.int32)
COUNTS = np.asarray([[1, 1, 0, 0], [0, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])


def example(shape=(4, 7, 9), classes=5, seed=0):
    """Labels with void 255, predictions, mask."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(shape) < 0.1, 255, rng.integers(0, classes, shape)).astype(np.int32)
    return labels, rng.integers(0, classes, shape).astype(np.int32), rng.random(shape) < 0.8


def test_values_of_the_spec():
    counts = confusion_counts(LABELS, PREDICTIONS, num_classes=4, where=LABELS != 255)
    assert counts.dtype == jnp.int32
    np.testing.assert_array_equal(counts, COUNTS)
    state = build(num_classes=4).state()
    state.update({"confusion": counts[None]})
    result = state.compute()
    np.testing.assert_array_equal(result["iou"], [0.5, 0.5, 0.0, np.nan])
    np.testing.assert_array_equal(result["f1"], [2 / 3, 2 / 3, 0.0, np.nan])
    np.testing.assert_array_equal(result["precision"], [1.0, 0.5, np.nan, np.nan])
    np.testing.assert_array_equal(result["recall"], [0.5, 1.0, 0.0, np.nan])
    assert {name: value for name, value in result.items() if isinstance(value, float)} == pytest.approx(
        {
            "miou_present": 1 / 3,
            "miou_all": 0.25,
            "f1_present": 4 / 9,
            "f1_all": 1 / 3,
            "precision_present": 0.5,
            "precision_all": 0.375,
            "recall_present": 0.5,
            "recall_all": 0.375,
            "pixel_accuracy": 0.6,
            "mean_accuracy": 0.5,
            "frequency_weighted_iou": 0.4,
            # 5 pixels, 3 hits, by chance (2 * 1 + 2 * 4 + 1 * 0) / 25: (0.6 - 0.4) / (1 - 0.4).
            "cohen_kappa": 1 / 3,
        },
        abs=1e-12,
    )


def test_a_class_only_in_the_predictions_is_present():
    result = scores(np.asarray([[3, 1, 0], [0, 0, 0], [0, 0, 0]]))
    np.testing.assert_array_equal(result["iou"], [0.75, 0.0, np.nan])
    assert result["miou_present"] == 0.375 and result["miou_all"] == 0.25
    assert result["mean_accuracy"] == 0.75 and result["frequency_weighted_iou"] == 0.75
    assert result["recall_present"] == 0.375 and result["precision_present"] == 0.5
    assert result["cohen_kappa"] == 0.0


def test_without_a_pixel():
    result = scores(np.zeros((3, 3), np.int64))
    assert [result.pop(f"{name}_all") for name in ("miou", "f1", "precision", "recall")] == [0] * 4
    assert all(np.all(np.isnan(value)) for value in result.values())


def test_kappa_of_chance_of_full_agreement_and_where_it_is_undefined():
    assert scores(np.asarray([[1, 2], [2, 4]]))["cohen_kappa"] == 0
    assert scores(np.asarray([[5, 0], [0, 3]]))["cohen_kappa"] == 1
    assert scores(np.asarray([[0, 4], [4, 0]]))["cohen_kappa"] == -1
    assert np.isnan(scores(np.asarray([[7, 0], [0, 0]]))["cohen_kappa"])
    large = np.asarray([[3, 1], [2, 4]]) << 40  # sums of products beyond 64 bits
    assert scores(large)["cohen_kappa"] == scores(large >> 40)["cohen_kappa"] == pytest.approx(0.4)


@pytest.mark.parametrize("shape", [(4, 7, 9), (1, 8, 16), (33,), (2, 1, 5, 5)])
@pytest.mark.parametrize("classes", [1, 2, 21])
def test_numpy_twin(shape, classes):
    labels, predictions, where = example(shape, classes)
    expected = confusion_numpy(labels, predictions, num_classes=classes, where=where)
    got = jax.jit(lambda y, p, w: confusion_counts(y, p, num_classes=classes, where=w))(labels, predictions, where)
    np.testing.assert_array_equal(got, expected)
    assert expected.sum() == np.count_nonzero(where & (labels < classes))


@pytest.mark.parametrize("block", [4, 16, 1 << 15])
def test_products_count_what_scatter_counts(monkeypatch, block):
    monkeypatch.setattr(confusion, "_BLOCK", block)
    labels, predictions, where = example((3, 63), 5)
    cells = np.where(where & (labels < 5), labels * 5 + predictions, 25).astype(np.int32)
    by_product, by_scatter = confusion._by_product(5)(jnp.asarray(cells)), confusion._by_scatter(5)(jnp.asarray(cells))
    np.testing.assert_array_equal(by_product, by_scatter)
    assert by_product.dtype == by_scatter.dtype == jnp.int32
    for row in range(3):
        twin = confusion_numpy(labels[row], predictions[row], num_classes=5, where=where[row])
        np.testing.assert_array_equal(by_product[row], twin)


def test_mask_equals_subset():
    labels, predictions, where = example()
    masked = confusion_counts(labels, predictions, num_classes=5, where=where)
    subset = confusion_counts(labels[where], predictions[where], num_classes=5)
    np.testing.assert_array_equal(masked, subset)


def test_all_void_and_empty():
    labels, predictions, where = example()
    assert not np.any(confusion_counts(labels, predictions, num_classes=5, where=np.zeros_like(where)))
    assert not np.any(confusion_counts(np.full_like(labels, 255), predictions, num_classes=5))
    assert not np.any(confusion_counts(labels[:0], predictions[:0], num_classes=5))


@pytest.mark.parametrize("wrong", [-1, 5, 255, -(2**31)])
def test_what_is_no_class_falls_into_no_cell(wrong):
    labels, predictions, _ = example()
    spoiled = np.where(np.arange(9) < 3, wrong, predictions).astype(np.int32)
    expected = confusion_counts(labels[..., 3:], predictions[..., 3:], num_classes=5)
    np.testing.assert_array_equal(confusion_counts(labels, spoiled, num_classes=5), expected)
    np.testing.assert_array_equal(confusion_counts(spoiled, labels, num_classes=5), np.asarray(expected).T)


def test_vmap():
    labels, predictions, where = example()
    per_image = jax.vmap(lambda y, p, w: confusion_counts(y, p, num_classes=5, where=w))(labels, predictions, where)
    np.testing.assert_array_equal(
        per_image.sum(axis=0), confusion_counts(labels, predictions, num_classes=5, where=where)
    )


@pytest.mark.parametrize("sizes", [{"data": 4}, {"data": 2, "fsdp": 2}, {"data": 2, "space": 2}])
def test_four_devices_count_where_the_pixels_lie(sizes):
    labels, predictions, where = example((4, 8, 9))
    count = jax.jit(lambda y, p, w: confusion_counts(y, p, num_classes=5, where=w))
    sharded = jax.device_put((labels, predictions, where), batch_sharding(make_mesh(sizes), 3))
    expected = confusion_numpy(labels, predictions, num_classes=5, where=where)
    np.testing.assert_array_equal(count(*sharded), expected)
    text = count.lower(*sharded).compile().as_text()
    assert "all-reduce" in text and "all-gather" not in text, "pixels travel between devices"


@pytest.mark.parametrize("parts", [(4,), (1, 3), (2, 2), (1, 1, 1, 1)])
def test_split_in_any_way_and_merge(parts):
    labels, predictions, where = example()
    metric, start = build(num_classes=5), 0
    total = metric.state()
    for rows in parts:
        part = slice(start, start + rows)
        one = metric.state()
        one.update(metric.counts(labels[part], predictions[part], where=where[part]))
        total.merge(one)
        start += rows
    counts = total.to_arrays()["confusion"]
    np.testing.assert_array_equal(counts, confusion_numpy(labels, predictions, num_classes=5, where=where))


def test_exact_past_2_to_the_24_in_one_call():
    labels = np.zeros((1 << 24) + 3, np.uint8)
    labels[-1] = 1
    counts = jax.jit(lambda y: confusion_counts(y, y, num_classes=2))(labels)
    np.testing.assert_array_equal(counts, [[(1 << 24) + 2, 0], [0, 1]])


def test_exact_past_2_to_the_31_on_the_host():
    metric = build(num_classes=2)
    state = metric.state()
    batch = jnp.asarray([[[2**31 - 1, 0], [1, 0]]] * 2, jnp.int32)
    for _ in range(2):
        state.update({"confusion": batch})
    counts = state.to_arrays()["confusion"]
    assert counts.dtype == np.int64 and counts[0, 0] == 4 * (2**31 - 1)
    assert state.compute()["iou"][0] == (2**33 - 4) / 2**33
    many = metric.state({"confusion": counts << 25})
    many.merge(many)
    assert many.to_arrays()["confusion"][0, 0] == (2**33 - 4) << 26


def test_scores_equal_their_formulas_on_random_counts():
    counts = np.random.default_rng(3).integers(0, 50, (6, 6))
    result = scores(counts)
    iou = [counts[c, c] / (counts[c].sum() + counts[:, c].sum() - counts[c, c]) for c in range(6)]
    np.testing.assert_allclose(result["iou"], iou, rtol=1e-15)
    assert result["pixel_accuracy"] == pytest.approx(np.trace(counts) / counts.sum())
    assert result["mean_accuracy"] == pytest.approx(np.mean([counts[c, c] / counts[c].sum() for c in range(6)]))
    weighted = sum(counts[c].sum() * iou[c] for c in range(6)) / counts.sum()
    assert result["frequency_weighted_iou"] == pytest.approx(weighted)
    assert result["miou_present"] == result["miou_all"] == pytest.approx(np.mean(iou))
    precision = [counts[c, c] / counts[:, c].sum() for c in range(6)]
    recall = [counts[c, c] / counts[c].sum() for c in range(6)]
    f1 = [2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True)]
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1)):
        np.testing.assert_allclose(result[name], expected, rtol=1e-14)
        assert result[f"{name}_present"] == result[f"{name}_all"] == pytest.approx(np.mean(expected))
    agreed = np.trace(counts) / counts.sum()
    chance = np.sum(counts.sum(axis=0) * counts.sum(axis=1)) / counts.sum() ** 2
    assert result["cohen_kappa"] == pytest.approx((agreed - chance) / (1 - chance))


@pytest.mark.parametrize("function", [confusion_counts, confusion_numpy])
@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"labels": LABELS.astype(np.float32)}, TypeError, "labels must be integers"),
        ({"predictions": PREDICTIONS.astype(np.float32)}, TypeError, "predictions must be integers"),
        ({"where": np.ones(6, np.int32)}, TypeError, "bool"),
        ({"labels": LABELS[:5]}, ValueError, "differ in shape"),
        ({"where": np.ones(5, bool)}, ValueError, "differ in shape"),
        ({"num_classes": 0}, ValueError, "num_classes"),
        ({"num_classes": 50_000}, ValueError, "num_classes"),
    ],
)
def test_bad_input(function, change, error, says):
    arguments = {"labels": LABELS, "predictions": PREDICTIONS, "num_classes": 4} | change
    with pytest.raises(error, match=says):
        function(arguments.pop("labels"), arguments.pop("predictions"), **arguments)


def test_too_many_pixels_for_int32_raise_at_trace_time():
    many = jax.ShapeDtypeStruct((1 << 15, 1 << 16), jnp.int32)
    with pytest.raises(ValueError, match="2\\^31"):
        jax.eval_shape(lambda y: confusion_counts(y, y, num_classes=2), many)


def test_bad_counts():
    with pytest.raises(ValueError, match="square"):
        scores(np.zeros((2, 3), np.int64))
    with pytest.raises(ValueError, match="negative"):
        scores(np.asarray([[1, -1], [0, 0]]))
