"""Cross-entropy against the paper pixels, a NumPy twin and its contracts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxseg.core.errors import JaxsegError
from jaxseg.losses import ce
from jaxseg.losses import cross_entropy as module
from jaxseg.losses.cross_entropy import cross_entropy
from jaxseg.losses.inputs import of_label

# Three pixels: p = (.8, .2), (.4, .6), (.3, .7); labels 0, 0, 1. Values: spec of the losses, by hand.
PROBABILITIES = np.asarray([[[0.8, 0.2], [0.4, 0.6], [0.3, 0.7]]], np.float32)
LABELS = np.asarray([[0, 0, 1]], np.int32)
# The same as logits that a network could give: probabilities themselves are refused.
LOGITS = np.log(PROBABILITIES) - np.float32(1)


def cross_entropy_numpy(logits, labels, where, label_smoothing=0.0, class_weights=None, pixel_weights=None):
    """The formula, a pixel at a time, in float64."""
    logits = np.asarray(logits, np.float64)
    classes = logits.shape[-1]
    weights = np.ones(classes) if class_weights is None else np.asarray(class_weights, np.float64)
    factors = np.ones(labels.shape) if pixel_weights is None else pixel_weights
    result = np.zeros(labels.shape)
    for at in np.ndindex(labels.shape):
        if where[at]:
            log_p = logits[at] - logits[at].max()
            log_p = log_p - np.log(np.exp(log_p).sum())
            own = -weights[labels[at]] * log_p[labels[at]]
            result[at] = (1 - label_smoothing) * own + label_smoothing * np.mean(-weights * log_p)
            result[at] *= factors[at]
    return result


def example(seed=0, shape=(2, 5, 7), classes=4, dtype=np.float32):
    """Logits, labels with void 255, mask."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, shape).astype(np.int32)
    where = rng.random(shape) < 0.7
    return rng.normal(0, 3, (*shape, classes)).astype(dtype), np.where(where, labels, 255), where


def test_values_of_the_paper_pixels():
    where = np.ones(LABELS.shape, bool)
    loss = cross_entropy(LOGITS, LABELS, where=where)
    np.testing.assert_allclose(loss, [[0.22314355, 0.91629073, 0.35667494]], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "mean"),
    [
        ({}, 0.498703076),
        ({"class_weights": (2, 0.5)}, 0.819068679),
        ({"class_weights": (2, 0.5), "normalizer": "class_weights"}, 0.546045786),
        # 1.496109 over three pixels: with a fourth, void one they are four; the image is one.
        ({"normalizer": "all_pixels"}, 1.496109229 / 4),
        ({"normalizer": "images"}, 1.496109229),
        ({"class_weights": (2, 0.5), "normalizer": "all_pixels"}, 2.457206037 / 4),
    ],
)
def test_every_normalizer(options, mean):
    # A fourth, void pixel must change neither sum nor count but where all pixels count.
    logits = np.concatenate([LOGITS, np.full((1, 1, 2), 9, np.float32)], axis=1)[None]
    labels = np.concatenate([LABELS, [[255]]], axis=1).astype(np.int32)[None]
    np.testing.assert_allclose(module.build(**options).mean(logits, labels, where=labels < 2), mean, rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 1, 4, 8)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 0.0, 1.5)])
@pytest.mark.parametrize("weigh_pixels", [False, True])
def test_numpy_twin_eager_and_jit(shape, smoothing, weights, weigh_pixels):
    logits, labels, where = example(shape=shape)
    factors = np.random.default_rng(1).uniform(0, 10, shape).astype(np.float32) if weigh_pixels else None
    expected = cross_entropy_numpy(logits, labels, where, smoothing, weights, factors)
    options = {"label_smoothing": smoothing, "class_weights": weights, "pixel_weights": factors}
    eager = cross_entropy(logits, labels, where=where, **options)
    jitted = jax.jit(lambda x, y, w: cross_entropy(x, y, where=w, **options))(logits, labels, where)
    assert eager.dtype == jnp.float32
    np.testing.assert_allclose(eager, expected, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(jitted, eager, rtol=1e-5, atol=1e-6)


def test_pixel_weights_outside_the_mask_have_no_influence():
    logits, labels, where = example()
    factors = np.where(where, 2.0, np.nan).astype(np.float32)
    loss = lambda x: jnp.sum(cross_entropy(x, labels, where=where, pixel_weights=factors))  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
    plain, plain_gradient = jax.value_and_grad(lambda x: jnp.sum(cross_entropy(x, labels, where=where)))(
        jnp.asarray(logits)
    )
    np.testing.assert_allclose(value, 2 * plain, rtol=1e-6)
    np.testing.assert_allclose(gradient, 2 * np.asarray(plain_gradient), rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (np.ones((2, 5, 6), np.float32), "differ in shape"),
        (np.full((2, 5, 7), -1, np.float32), "negative"),
        (np.full((2, 5, 7), np.nan, np.float32), "not finite"),
    ],
)
def test_bad_pixel_weights(weights, says):
    logits, labels, where = example()
    with pytest.raises(ValueError, match=says):
        cross_entropy(logits, labels, where=where, pixel_weights=weights)


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


def test_large_logits_do_not_round_the_loss_away():
    # log(1 + exp(-2)) = 0.126928; with its size, 2^13, added and taken away again it would be a multiple of 2^-10.
    logits = np.asarray([[[8192.0, 8190.0]]], np.float32)
    loss, gradient = jax.value_and_grad(lambda x: jnp.sum(cross_entropy(x, np.zeros((1, 1), np.int32))))(
        jnp.asarray(logits)
    )
    np.testing.assert_allclose(loss, np.log1p(np.exp(-2)), rtol=1e-6)
    np.testing.assert_allclose(gradient[0, 0], [-1 / (1 + np.exp(2)), 1 / (1 + np.exp(2))], rtol=1e-6)


def test_label_that_is_no_class_is_loud():
    logits, labels, where = example()
    wrong = np.where(where, 4, 255).astype(np.int32)
    with pytest.raises(ValueError, match=r"label 4 .*0\.\.3"):
        cross_entropy(logits, wrong, where=where)
    loss = jax.jit(lambda x: cross_entropy(x, wrong, where=where))(logits)
    assert np.all(np.isnan(np.asarray(loss)[where])) and not np.any(np.asarray(loss)[~where])


def test_probabilities_are_refused():
    with pytest.raises(ValueError, match="before the softmax"):
        cross_entropy(PROBABILITIES, LABELS)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.int16])
def test_other_label_types(dtype):
    logits, labels, where = example()
    with jax.enable_x64(True):
        other = cross_entropy(logits, labels.astype(dtype), where=where)
    np.testing.assert_array_equal(other, cross_entropy(logits, labels, where=where))


def test_weights_of_the_wrong_length_raise_at_trace_time():
    logits, labels, where = example()
    with pytest.raises(ValueError, match="4 classes"):
        jax.eval_shape(lambda x: cross_entropy(x, labels, where=where, class_weights=(1.0, 2.0)), logits)
    with pytest.raises(ValueError, match="not negative"):
        cross_entropy(logits, labels, where=where, class_weights=(1.0, 2.0, -1.0, 0.0))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"class_weights": (1.0, -1.0)}, "class_weights"),
        ({"class_weights": (1.0, float("nan"))}, "class_weights"),
        ({"class_weights": "weights.json"}, "one number a class"),
        ({"class_weights": 2.0}, "one number a class"),
        ({"class_weights": (1.0, "heavy")}, "one number a class"),
        ({"normalizer": "mean"}, "valid_pixels, class_weights"),
        ({"normalizer": "class_weights"}, "needs class_weights"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises(JaxsegError, match=says):
        module.build(**options)


def test_ce_is_the_short_name():
    assert ce.build is module.build and ce.cross_entropy is cross_entropy


def test_a_tpu_compares_where_others_look_up(request):
    """The same numbers, whatever stands at the other classes, and no gather in a TPU's program, of weights either."""
    logits = jnp.asarray([[[1.0, jnp.nan, -jnp.inf], [jnp.inf, 2.0, jnp.nan], [0.0, 3.0, -4.0]]])
    weights, labels = jnp.asarray([0.5, 2.0, 3.0]), jnp.asarray([[0, 1, 2]])

    def check():
        np.testing.assert_array_equal(of_label(logits, labels), [[1, 2, -4]])
        np.testing.assert_array_equal(of_label(weights, labels), [[0.5, 2, 3]])

    x, y, where = (jnp.asarray(a) for a in example())
    loss = lambda x: jnp.sum(cross_entropy(x, y, where=where, class_weights=np.arange(4)))  # noqa: E731
    traced = jax.jit(jax.value_and_grad(loss)).trace(x)
    for platform, there in (("cpu", True), ("cuda", True), ("tpu", False)):
        assert ("stablehlo.gather" in traced.lower(lowering_platforms=(platform,)).as_text()) == there
    check()
    request.getfixturevalue("tpu")
    check()
