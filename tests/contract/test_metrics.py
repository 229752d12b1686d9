"""What every metric of a config keeps. A new file in jaxseg/metrics with `build` is found by itself."""

import functools
import importlib
import json

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxseg.core.mesh import make_mesh
from jaxseg.core.names import known_names, resolve
from jaxseg.metrics.metric import Metric

CLASSES = 3
SHAPE = (4, 11, 13)

# Options beyond the defaults that are held to the contract as well: name -> list of options.
VARIANTS = {
    "calibration": [{"bins": 4}],
    "average_precision": [{"thresholds": (0.25, 0.5), "interpolation": "voc", "connectivity": 4}],
    "boundary_f1": [{"tolerance_px": 1.5, "outside": "background", "connectivity": 8, "both_empty": "one"}],
    "boundary_iou": [{"width_px": 2, "distance": "euclidean", "outside": "background"}],
    "trimap": [{"widths": (1, 3), "band": "square"}, {"widths": (2, 5), "around": "void"}],
    "hausdorff": [{"points": "region", "percentiles": (50, 37.5), "spacing": (1.5, 0.7), "one_empty": "diagonal"}],
    "surface_distance": [{"elements": "surfels", "spacing": (0.7, 1.5), "tolerances": (0.5, 2), "one_empty": "skip"}],
}
NAMES = [n for n in known_names("metrics") if hasattr(importlib.import_module(f"jaxseg.metrics.{n}"), "build")]
# The options beyond the defaults take minutes to compile: they run with the slow tests.
CASES = [pytest.param(n, {}) for n in NAMES]
CASES += [pytest.param(n, o, marks=pytest.mark.slow) for n in NAMES for o in VARIANTS.get(n, [])]


def case_id(case):
    return case if isinstance(case, str) else "-".join(f"{k}={v}" for k, v in case.items()) or "default"


each_metric = pytest.mark.parametrize(("name", "options"), CASES, ids=case_id)


def example(needs, seed=0):
    """Labels in blocks with void 255, predictions or probabilities that are mostly right, mask, sizes."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(SHAPE[1:])
    labels = np.stack([(rows // 4 + columns // 4 + i) % CLASSES for i in range(SHAPE[0])]).astype(np.int32)
    where = np.ones(SHAPE, bool)
    where[:, 3:5, 2:4] = False
    logits = rng.normal(0, 1, (*SHAPE, CLASSES)) + 3 * np.eye(CLASSES)[np.roll(labels, 1, axis=2)]
    probabilities = (np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)).astype(np.float32)
    outputs = probabilities if needs == "probabilities" else probabilities.argmax(axis=-1).astype(np.int32)
    size = np.full((SHAPE[0], 2), SHAPE[1:], np.int32)
    return np.where(where, labels, 255).astype(np.int32), outputs, where, size


@functools.cache
def compiled(name, options):
    return resolve("metrics", name)(num_classes=CLASSES, **json.loads(options))


def built(name, options):
    """The metric, one object for all tests of the case, so that it is compiled once."""
    return compiled(name, json.dumps(options, sort_keys=True))


@functools.cache
def counter(metric):
    return jax.jit(lambda y, o, w, s: metric.counts(y, o, where=w, size=s))


def state_of(metric, *batches):
    state, count = metric.state(), counter(metric)
    for batch in batches:
        state.update(count(*batch))
    return state


def plain(scores):
    """Scores as text: equal where every bit is, NaN included."""
    return json.dumps(scores, sort_keys=True)


def close(one, other):
    """Scores equal up to the order of float sums."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            close(value, other[name])
        else:
            np.testing.assert_allclose(value, other[name], rtol=1e-12, atol=1e-12, err_msg=name)


@each_metric
def test_scores_are_numbers_values_per_class_or_tables(name, options):
    metric = built(name, options)
    assert isinstance(metric, Metric)
    scores = state_of(metric, example(metric.needs)).compute()
    assert scores
    for key, value in scores.items():
        if isinstance(value, dict):
            assert all(isinstance(column, list) for column in value.values()), key
        elif isinstance(value, list):
            assert len(value) == CLASSES and all(isinstance(x, float) for x in value), key
        else:
            assert isinstance(value, float) and np.isfinite(value), key


@each_metric
@pytest.mark.parametrize("parts", [(1, 3), (2, 2), (1, 1, 1, 1)])
def test_a_batch_may_be_split_merged_and_carried_in_any_way(name, options, parts):
    metric = built(name, options)
    arrays = example(metric.needs)
    whole, ends = state_of(metric, arrays).compute(), np.cumsum((0, *parts))
    batches = [[x[a:b] for x in arrays] for a, b in zip(ends[:-1], ends[1:], strict=True)]
    close(state_of(metric, *batches).compute(), whole)
    close(state_of(metric, *batches[::-1]).compute(), whole)
    merged = metric.state()
    for batch in batches:
        merged.merge(metric.state(state_of(metric, batch).to_arrays()))
    close(merged.compute(), whole)


@each_metric
def test_images_without_a_valid_pixel_leave_no_trace(name, options):
    metric = built(name, options)
    labels, outputs, where, size = example(metric.needs)
    expected = state_of(metric, (labels[:3], outputs[:3], where[:3], size[:3])).compute()
    where[3], size[3] = False, 0  # what pads a batch
    close(state_of(metric, (labels, outputs, where, size)).compute(), expected)


@each_metric
def test_all_void(name, options):
    metric = built(name, options)
    labels, outputs, where, size = example(metric.needs)
    scores = state_of(metric, (np.full_like(labels, 255), outputs, np.zeros_like(where), size)).compute()
    numbers = [value for key, value in scores.items() if isinstance(value, float) and not key.endswith("_all")]
    assert np.all(np.isnan(numbers))


@each_metric
def test_what_is_void_has_no_influence(name, options):
    metric = built(name, options)
    labels, outputs, where, size = example(metric.needs)
    expected = state_of(metric, (labels, outputs, where, size)).compute()
    spoiled = outputs.copy()
    spoiled[~where] = np.nan if metric.needs == "probabilities" else 1
    other_labels = np.where(where, labels, 1).astype(np.int32)
    assert plain(state_of(metric, (other_labels, spoiled, where, size)).compute()) == plain(expected)


@each_metric
def test_padding_changes_nothing(name, options):
    metric = built(name, options)
    labels, outputs, where, size = example(metric.needs)
    expected = state_of(metric, (labels, outputs, where, size)).compute()
    pad = [(0, 0), (0, 3), (0, 5)]
    wider = np.pad(outputs, [*pad, (0, 0)] if outputs.ndim == 4 else pad)
    padded = np.pad(labels, pad, constant_values=255), wider, np.pad(where, pad), size
    close(state_of(metric, padded).compute(), expected)


@each_metric
def test_two_devices_count_the_same_bits(name, options):
    metric = built(name, options)
    arrays, count = example(metric.needs), counter(metric)
    one = count(*arrays)
    rows = NamedSharding(make_mesh(devices=jax.devices()[:2]), PartitionSpec("data"))
    two = count(*jax.device_put(arrays, rows))
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert value.shape[0] == SHAPE[0], f"{key} has no entry an image"
        np.testing.assert_array_equal(two[key], value)


@each_metric
def test_arguments_are_checked_at_trace_time(name, options):
    metric = built(name, options)
    labels, outputs, where, _ = example(metric.needs)
    with pytest.raises(TypeError, match="integers"):
        jax.eval_shape(lambda y: metric.counts(y, outputs, where=where), labels.astype(np.float32))
    with pytest.raises((TypeError, ValueError)):
        jax.eval_shape(lambda y: metric.counts(y, outputs, where=where), labels[:, :-1])
    with pytest.raises(TypeError, match="bool"):
        jax.eval_shape(lambda w: metric.counts(labels, outputs, where=w), where.astype(np.int32))
