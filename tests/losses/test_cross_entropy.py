"""Cross-entropy against hand values, a NumPy twin and its contracts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxseg.core.errors import JaxsegError
from jaxseg.losses import cross_entropy as module
from jaxseg.losses.cross_entropy import cross_entropy
from jaxseg.losses.reduction import compose

# Three pixels: p = (.8, .2), (.4, .6), (.3, .7); labels 0, 0, 1. Values: spec of the losses, by hand.
PROBABILITIES = np.asarray([[[0.8, 0.2], [0.4, 0.6], [0.3, 0.7]]], np.float32)
LABELS = np.asarray([[0, 0, 1]], np.int32)


def cross_entropy_numpy(logits, labels, where, label_smoothing=0.0, class_weights=None):
    """The formula, a pixel at a time, in float64."""
    logits = np.asarray(logits, np.float64)
    classes = logits.shape[-1]
    weights = np.ones(classes) if class_weights is None else np.asarray(class_weights, np.float64)
    result = np.zeros(labels.shape)
    for at in np.ndindex(labels.shape):
        if where[at]:
            log_p = logits[at] - logits[at].max()
            log_p = log_p - np.log(np.exp(log_p).sum())
            own = -weights[labels[at]] * log_p[labels[at]]
            result[at] = (1 - label_smoothing) * own + label_smoothing * np.mean(-weights * log_p)
    return result


def example(seed=0, shape=(2, 5, 7), classes=4, dtype=np.float32):
    """Logits, labels with void 255, mask."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, shape).astype(np.int32)
    where = rng.random(shape) < 0.7
    return rng.normal(0, 3, (*shape, classes)).astype(dtype), np.where(where, labels, 255), where


def test_values_of_the_paper_pixels():
    where = np.ones(LABELS.shape, bool)
    loss = cross_entropy(np.log(PROBABILITIES), LABELS, where=where)
    np.testing.assert_allclose(loss, [[0.22314355, 0.91629073, 0.35667494]], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "mean"),
    [
        ({}, 0.498703076),
        ({"class_weights": (2, 0.5)}, 0.819068679),
        ({"class_weights": (2, 0.5), "normalizer": "class_weights"}, 0.546045786),
    ],
)
def test_both_normalizers(options, mean):
    # A fourth, void pixel must change neither sum nor count.
    logits = np.concatenate([np.log(PROBABILITIES), np.full((1, 1, 2), 9, np.float32)], axis=1)
    labels = np.concatenate([LABELS, [[255]]], axis=1)
    total, count = compose({"cross_entropy": options})(logits, labels, where=labels < 2)
    np.testing.assert_allclose(total / count, mean, rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 1, 4, 8)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 0.0, 1.5)])
def test_numpy_twin_eager_and_jit(shape, smoothing, weights):
    logits, labels, where = example(shape=shape)
    expected = cross_entropy_numpy(logits, labels, where, smoothing, weights)
    options = {"label_smoothing": smoothing, "class_weights": weights}
    eager = cross_entropy(logits, labels, where=where, **options)
    jitted = jax.jit(lambda x, y, w: cross_entropy(x, y, where=w, **options))(logits, labels, where)
    assert eager.dtype == jnp.float32
    np.testing.assert_allclose(eager, expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(jitted, eager, rtol=1e-5, atol=1e-6)


def test_vmap_equals_batch():
    logits, labels, where = example()
    batch = cross_entropy(logits, labels, where=where)
    mapped = jax.vmap(lambda x, y, w: cross_entropy(x, y, where=w))(logits, labels, where)
    np.testing.assert_array_equal(mapped, batch)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2, "class_weights": (0.5, 2.0, 1.0, 1.5)}])
def test_gradients(options):
    logits, labels, where = example(shape=(2, 3, 3))
    with jax.enable_x64(True):
        logits = jnp.asarray(logits, jnp.float64)
        check_grads(lambda x: cross_entropy(x, labels, where=where, **options), (logits,), order=1, modes=["rev"])


def test_gradient_is_softmax_minus_target():
    logits, labels, where = example()
    gradient = jax.grad(lambda x: jnp.sum(cross_entropy(x, labels, where=where)))(jnp.asarray(logits))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.where(where[..., None], p - (labels[..., None] == np.arange(4)), 0)
    np.testing.assert_allclose(gradient, expected, atol=2e-6)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"class_weights": (1.0, 2.0, 3.0, 4.0)}])
@pytest.mark.parametrize("garbage", [1e30, np.nan, np.inf])
def test_void_pixels_have_no_influence(options, garbage):
    logits, labels, where = example()
    loss = lambda x, y: jnp.sum(cross_entropy(x, y, where=where, **options))  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits), labels)
    spoiled = np.where(where[..., None], logits, garbage).astype(np.float32)
    other, other_gradient = jax.value_and_grad(loss)(jnp.asarray(spoiled), np.where(where, labels, -7))
    assert value == other
    np.testing.assert_array_equal(gradient, other_gradient)
    assert not np.any(np.asarray(gradient)[~where])


def test_mask_equals_subset():
    logits, labels, where = example()
    masked = cross_entropy(logits, labels, where=where)
    subset = cross_entropy(logits[where], labels[where], where=np.ones(where.sum(), bool))
    np.testing.assert_array_equal(np.asarray(masked)[where], subset)
    assert not np.any(np.asarray(masked)[~where])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}])
def test_extreme_logits_are_finite(dtype, options):
    logits = jnp.asarray([[[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 1e4, -1e4]]], dtype)
    labels, where = jnp.asarray([[1, 0, 2]], jnp.int32), jnp.ones((1, 3), bool)
    loss, gradient = jax.value_and_grad(lambda x: jnp.sum(cross_entropy(x, labels, where=where, **options)))(logits)
    assert loss.dtype == jnp.float32 and gradient.dtype == dtype
    assert np.isfinite(loss) and np.all(np.isfinite(gradient.astype(jnp.float32)))
    if not options:
        first = float(logits[0, 0, 0])  # 1e4 as the type holds it
        np.testing.assert_allclose(loss, 2 * first + np.log(3) + 2 * first + np.log(2), rtol=1e-6)


def test_bfloat16_is_computed_in_float32():
    logits, labels, where = example()
    half = jnp.asarray(logits, jnp.bfloat16)
    np.testing.assert_array_equal(
        cross_entropy(half, labels, where=where), cross_entropy(half.astype(jnp.float32), labels, where=where)
    )


def test_label_that_is_no_class_is_loud():
    logits, labels, where = example()
    loss = cross_entropy(logits, np.where(where, 4, 255), where=where)
    assert np.all(np.isnan(np.asarray(loss)[where])) and not np.any(np.asarray(loss)[~where])


def test_narrow_labels():
    logits, labels, where = example()
    np.testing.assert_array_equal(
        cross_entropy(logits, labels.astype(np.uint8), where=where), cross_entropy(logits, labels, where=where)
    )


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"labels": np.zeros((2, 5, 7), np.float32)}, TypeError, "integers"),
        ({"where": np.ones((2, 5, 7), np.int32)}, TypeError, "bool"),
        ({"logits": np.zeros((2, 5, 7, 4), np.int32)}, TypeError, "floats"),
        ({"labels": np.zeros((2, 5, 8), np.int32)}, ValueError, "fit"),
        ({"where": np.ones((5, 7), bool)}, ValueError, "fit"),
        ({"class_weights": (1.0, 2.0)}, ValueError, "4 classes"),
    ],
)
def test_bad_input_raises_at_trace_time(change, error, says):
    logits, labels, where = example()
    arguments = {"logits": logits, "labels": labels, "where": where} | change
    weights = arguments.pop("class_weights", None)
    with pytest.raises(error, match=says):
        jax.eval_shape(
            lambda a: cross_entropy(a["logits"], a["labels"], where=a["where"], class_weights=weights), arguments
        )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"class_weights": (1.0, -1.0)}, "class_weights"),
        ({"class_weights": (1.0, float("nan"))}, "class_weights"),
        ({"normalizer": "mean"}, "valid_pixels, class_weights"),
        ({"normalizer": "class_weights"}, "needs class_weights"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises(JaxsegError, match=says):
        module.build(**options)
