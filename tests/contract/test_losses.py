"""What every loss of a config keeps, whatever its formula. A new file in jaxseg/losses with `build` is found."""

import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from jaxseg.core.mesh import make_mesh
from jaxseg.core.names import known_names, resolve

CLASSES = 3

# Options beyond the defaults that are held to the contract as well: name -> list of options.
VARIANTS = {
    "cross_entropy": [
        {"label_smoothing": 0.1, "class_weights": (0.5, 2.0, 1.0), "normalizer": "class_weights"},
        {"normalizer": "images"},
        {"normalizer": "all_pixels"},
        {"border_weight": {"w0": 5.0, "sigma": 2.0}, "class_weights": (0.5, 2.0, 1.0)},
    ],
    "sigmoid_cross_entropy": [
        {"label_smoothing": 0.1, "class_weights": (0.5, 2.0, 1.0), "pos_weight": (3.0, 1.0, 0.5)},
        {"class_weights": (0.5, 2.0, 1.0), "normalizer": "class_weights"},
        {"normalizer": "positives"},
    ],
    "bootstrapped_cross_entropy": [
        {"fraction": 0.5, "per_image": False, "class_weights": (0.5, 2.0, 1.0)},
        {"pixels": 10},
    ],
    "ohem_cross_entropy": [
        {"threshold": 0.6, "min_kept": 10, "per_image": True},
        {"threshold": 0.1, "min_kept": 70, "class_weights": (0.5, 2.0, 1.0)},
    ],
    "focal": [{"gamma": 0.5, "class_weights": (0.5, 2.0, 1.0)}, {"gamma": 5}, {"gamma": 0}],
    "sigmoid_focal": [{"gamma": 0.5, "alpha": None}, {"gamma": 5, "normalizer": "positives"}],
    "poly": [{"epsilon": -1, "gamma": 0.5}, {"gamma": 2.0, "class_weights": (0.5, 2.0, 1.0)}],
    "combo": [
        {"alpha": 0.3, "beta": 0.6, "per_image": False, "smooth": 0.0},
        {"activation": "sigmoid", "classes": "present"},
        {"classes": (1, 2)},
    ],
    "dice": [
        {"smooth": 1.0, "per_image": False, "classes": "all"},
        {"squared": True, "classes": (1, 2), "smooth": 1.0},
        {"activation": "sigmoid"},
    ],
    "generalized_dice": [
        {"per_image": False, "classes": "all", "absent_weight": "max"},
        {"weighting": "simple", "classes": (1, 2), "smooth": 0.1},
        {"activation": "sigmoid", "weighting": "uniform", "classes": "all"},
    ],
    "jaccard": [{"per_image": False, "classes": "all", "smooth": 1.0}, {"activation": "sigmoid"}],
    "log_cosh_dice": [{"per_image": False, "squared": True}],
    "lovasz_softmax": [{"per_image": True, "classes": "all"}, {"classes": (1, 2)}, {"bins": 1 << 20}],
    "lovasz_hinge": [{"per_image": False, "classes": "present"}, {"classes": (1, 2)}],
    "tversky": [{"per_image": False, "classes": (0, 2), "smooth": 1.0}, {"activation": "sigmoid", "alpha": 0.5}],
    "boundary": [{"classes": (2, 1), "normalized": True, "activation": "sigmoid"}],
    "hausdorff_distance_transform": [{"one_sided": True, "alpha": 1.5, "activation": "sigmoid", "classes": (0, 2)}],
    "hausdorff_erosion": [{"erosions": 2, "alpha": 1.0, "classes": (1, 2), "activation": "sigmoid"}],
    "hausdorff_convolution": [{"radii": (1, 2), "alpha": 1.0, "classes": (2,), "activation": "sigmoid"}],
    "focal_tversky": [{"per_image": False, "classes": "all", "smooth": 1.0}, {"gamma": 0.75, "activation": "sigmoid"}],
}
# Options without which a loss cannot be built, or takes seconds to compile: name -> options.
NEEDED: dict[str, dict] = {"hausdorff_convolution": {"radii": (2, 5)}}  # the default ones exceed these images anyway
NAMES = [n for n in known_names("losses") if hasattr(importlib.import_module(f"jaxseg.losses.{n}"), "build")]
# The options beyond the defaults take minutes to compile: they run with the slow tests.
CASES = [pytest.param(n, NEEDED.get(n, {})) for n in NAMES]
CASES += [pytest.param(n, NEEDED.get(n, {}) | o, marks=pytest.mark.slow) for n in NAMES for o in VARIANTS.get(n, [])]


def case_id(case):
    return case if isinstance(case, str) else "-".join(f"{k}={v}" for k, v in case.items()) or "default"


each_loss = pytest.mark.parametrize(("name", "options"), CASES, ids=case_id)


def example(seed=0, shape=(4, 7, 9), void=0.2):
    """Logits, labels in blobs with void 255, mask; every image has every class."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(shape[-2:])
    labels = np.stack([(rows // 3 + columns // 3 + i) % CLASSES for i in range(shape[0])]).astype(np.int32)
    where = rng.random(shape) >= void
    logits = rng.normal(0, 1.5, (*shape, CLASSES)) + 1.5 * np.eye(CLASSES)[labels]
    logits[0, :5, :5, 2] += 6  # an area that is wrong for sure: single wrong pixels do not outlast an erosion
    return logits.astype(np.float32), np.where(where, labels, 255).astype(np.int32), where


@functools.cache
def compiled(name, options):
    """The loss, its jitted value and gradient, and its jitted values, compiled once for all tests of the case."""
    loss = resolve("losses", name)(**json.loads(options))
    step = jax.jit(jax.value_and_grad(lambda x, y, w: loss.mean(x, y, where=w)))
    return loss, step, jax.jit(lambda x, y, w: loss(x, y, where=w))


def built(name, options):
    return compiled(name, json.dumps(options, sort_keys=True))  # options of options are no hashable key


@each_loss
def test_sum_of_parts(name, options):
    """A loss that adds up gives the same number however the batch is split; another one whatever its order."""
    (loss, step, values), (logits, labels, where) = built(name, options), example()
    where[2] = False
    whole, _ = step(logits, labels, where)
    if loss.whole_batch:
        order = np.asarray([2, 0, 3, 1])
        other, _ = step(logits[order], labels[order], where[order])
    else:
        divisor = loss.divisor(labels, where=where, num_classes=CLASSES)
        parts = [slice(0, 2), slice(2, 4)]
        other = sum(np.sum(values(logits[p], labels[p], where[p])) for p in parts) / divisor
        counts = sum(loss.divisor(labels[p], where=where[p], num_classes=CLASSES) for p in parts)
        np.testing.assert_allclose(counts, divisor, rtol=1e-6)
    assert abs(float(whole)) > 1e-4
    np.testing.assert_allclose(other, whole, rtol=2e-5)


@each_loss
def test_eager_jit_and_vmap(name, options):
    (loss, _, values), (logits, labels, where) = built(name, options), example(shape=(2, 5, 4))
    eager = loss(logits, labels, where=where)
    assert eager.dtype == jnp.float32
    np.testing.assert_allclose(values(logits, labels, where), eager, rtol=1e-4, atol=1e-5)
    if not loss.whole_batch:
        mapped = jax.jit(jax.vmap(lambda x, y, w: loss(x, y, where=w)))(logits, labels, where)
        np.testing.assert_allclose(mapped, eager, rtol=1e-4, atol=1e-5)


@each_loss
def test_two_devices_equal_one(name, options):
    (_, step, _), arrays = built(name, options), example()
    value, gradient = step(*arrays)
    rows = NamedSharding(make_mesh(devices=jax.devices()[:2]), PartitionSpec("data"))
    other, other_gradient = step(*jax.device_put(arrays, rows))
    np.testing.assert_allclose(other, value, rtol=1e-5)
    np.testing.assert_allclose(other_gradient, gradient, atol=1e-5 * np.abs(gradient).max())


@each_loss
def test_void_pixels_have_no_influence(name, options):
    (_, step, _), (logits, labels, where) = built(name, options), example()
    value, gradient = step(logits, labels, where)
    assert not np.any(np.asarray(gradient)[~where]) and np.any(gradient)
    for garbage in (1e30, np.nan, np.inf):
        spoiled = np.where(where[..., None], logits, garbage).astype(np.float32)
        other, other_gradient = step(spoiled, np.where(where, labels, -7).astype(np.int32), where)
        assert float(value) == float(other)
        np.testing.assert_array_equal(gradient, other_gradient)


@each_loss
def test_padding_with_void_changes_nothing(name, options):
    if options.get("normalizer") == "all_pixels":
        return  # it counts padding on purpose
    (_, step, _), (logits, labels, where) = built(name, options), example()
    value, _ = step(logits, labels, where)
    pad = [(0, 0), (0, 3), (0, 2)]
    wider = np.pad(labels, pad, constant_values=255)
    other, _ = step(np.pad(logits, [*pad, (0, 0)], constant_values=5), wider, np.pad(where, pad))
    np.testing.assert_allclose(other, value, rtol=2e-5)


@each_loss
def test_all_void_is_zero_with_zero_gradients(name, options):
    (_, step, _), (logits, labels, where) = built(name, options), example()
    value, gradient = step(logits, np.full_like(labels, 255), np.zeros_like(where))
    assert float(value) == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(logits))


@each_loss
@pytest.mark.parametrize("present", [(0,), (1, 2)])
def test_absent_classes(name, options, present):
    (_, step, _), (logits, labels, where) = built(name, options), example()
    labels = np.where(where, np.asarray(present, np.int32)[np.minimum(labels, CLASSES - 1) % len(present)], 255)
    value, gradient = step(logits, labels.astype(np.int32), where)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))
    # An image of one class has no outline, to which distances would run.
    assert np.any(gradient) or (len(present) == 1 and name in ("boundary", "hausdorff_distance_transform"))


@each_loss
def test_one_pixel(name, options):
    _, step, _ = built(name, options)
    logits = np.asarray([[[[0.5, -1.0, 0.25]]]], np.float32)
    for label in (0, 2):
        value, gradient = step(logits, np.full((1, 1, 1), label, np.int32), np.ones((1, 1, 1), bool))
        assert np.isfinite(value) and np.all(np.isfinite(gradient))


@each_loss
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_extreme_logits_are_finite(name, options, dtype):
    (_, step, _), (logits, labels, where) = built(name, options), example()
    rng = np.random.default_rng(1)
    extreme = jnp.asarray(rng.choice([-1e4, 0.0, 1e4], logits.shape), dtype)
    value, gradient = step(extreme, labels, where)
    assert gradient.dtype == dtype
    assert np.isfinite(value) and np.all(np.isfinite(gradient.astype(jnp.float32)))


@each_loss
def test_bfloat16_is_computed_in_float32(name, options):
    (_, step, _), (logits, labels, where) = built(name, options), example()
    half = jnp.asarray(logits, jnp.bfloat16)
    value, gradient = step(half, labels, where)
    other, other_gradient = step(half.astype(jnp.float32), labels, where)
    np.testing.assert_allclose(value, other, rtol=1e-6)
    np.testing.assert_allclose(gradient.astype(np.float32), other_gradient, rtol=2**-7, atol=1e-8)


@each_loss
def test_gradients_against_finite_differences(name, options):
    (loss, _, _), (logits, labels, where) = built(name, options), example(seed=3, shape=(2, 5, 4))
    with jax.enable_x64(True):
        mean = jax.jit(lambda x: loss.mean(x, labels, where=where))
        check_grads(mean, (jnp.asarray(logits, jnp.float64),), 1, modes=["rev"])


@each_loss
@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"labels": np.zeros((4, 7, 9), np.float32)}, TypeError, "integers"),
        ({"where": np.ones((4, 7, 9), np.int32)}, TypeError, "bool"),
        ({"logits": np.zeros((4, 7, 9, CLASSES), np.int32)}, TypeError, "floats"),
        ({"labels": np.zeros((4, 7, 8), np.int32)}, ValueError, "fit|neither"),
        ({"where": np.ones((7, 9), bool)}, ValueError, "fit|neither"),
        (
            {
                "logits": np.zeros((0, 7, 9, CLASSES), np.float32),
                "labels": np.zeros((0, 7, 9), np.int32),
                "where": np.ones((0, 7, 9), bool),
            },
            ValueError,
            "no pixel",
        ),
    ],
)
def test_bad_input_raises_at_trace_time(name, options, change, error, says):
    (loss, _, _), (logits, labels, where) = built(name, options), example()
    arguments = {"logits": logits, "labels": labels, "where": where} | change
    with pytest.raises(error, match=says):
        jax.eval_shape(lambda a: loss(a["logits"], a["labels"], where=a["where"]), arguments)


@each_loss
def test_label_that_is_no_class(name, options):
    """Outside of jit an error that names it; inside, where no value can be looked at, NaN."""
    (loss, step, _), (logits, labels, where) = built(name, options), example()
    labels = np.where(where, np.where(labels == 1, CLASSES, labels), 255).astype(np.int32)
    with pytest.raises(ValueError, match=f"label {CLASSES} .*not in 0..{CLASSES - 1}"):
        loss(logits, labels, where=where)
    value, _ = step(logits, labels, where)
    assert np.isnan(value)
