"""Lovasz-softmax and Lovasz hinge against hand values, a NumPy twin and the definition as a sum over sets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxseg.core.errors import JaxsegError
from jaxseg.core.names import resolve
from jaxseg.losses.lovasz import binned_slopes, lovasz_extension, lovasz_slopes
from jaxseg.losses.lovasz_hinge import lovasz_hinge
from jaxseg.losses.lovasz_softmax import lovasz_softmax

# Three pixels: p = (.8, .2), (.4, .6), (.3, .7); labels 0, 0, 1. Values: spec of the losses, by hand.
LOGITS = np.log(np.asarray([[[0.8, 0.2], [0.4, 0.6], [0.3, 0.7]]], np.float32))
LABELS = np.asarray([[0, 0, 1]], np.int32)


def example(seed=0, shape=(3, 5, 6), classes=4, dtype=np.float32):
    """Logits, labels with void 255 and without class 3 in the first image, mask."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, shape).astype(np.int32)
    labels[0] = np.minimum(labels[0], classes - 2)
    where = rng.random(shape) < 0.7
    return rng.normal(0, 2, (*shape, classes)).astype(dtype), np.where(where, labels, 255).astype(np.int32), where


def extension_numpy(errors, positive):
    """Pixels one by one in descending order of their errors; J from its definition on the set of the first k."""
    total, before, intersection, union = 0.0, 0.0, int(np.sum(positive)), int(np.sum(positive))
    for k in np.argsort(-np.asarray(errors, np.float64), kind="stable"):
        if positive[k]:
            intersection -= 1
        else:
            union += 1
        after = 1 - intersection / union
        total, before = total + errors[k] * (after - before), after
    return total


def lovasz_numpy(name, logits, labels, where, classes, per_image):
    """Values and whether they take part, `[*b, c]` or `[c]`."""
    logits, where = np.asarray(logits, np.float64), np.broadcast_to(where, labels.shape)
    count = logits.shape[-1]
    hot = labels if labels.ndim == logits.ndim else labels[..., None] == np.arange(count)
    wide = where if where.ndim == logits.ndim else np.broadcast_to(where[..., None], logits.shape)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    errors = np.abs(hot - p) if name == "lovasz_softmax" else np.maximum(0, 1 - logits * (2.0 * hot - 1))
    lead = logits.shape[:-3] if per_image else ()
    values, parts = np.zeros((*lead, count)), np.zeros((*lead, count), bool)
    for at in np.ndindex(lead):
        for c in range(count):
            valid = wide[at][..., c].ravel()
            own, error = hot[at][..., c].ravel()[valid] > 0, errors[at][..., c].ravel()[valid]
            parts[(*at, c)] = own.any() if classes == "present" else valid.any() and (classes == "all" or c in classes)
            if parts[(*at, c)]:
                values[(*at, c)] = extension_numpy(error, own)
    return values, parts


def test_softmax_values_of_the_paper_pixels():
    # A fourth, void pixel changes nothing.
    logits = np.concatenate([LOGITS, np.full((1, 1, 2), 9, np.float32)], axis=1)
    labels = np.concatenate([LABELS, [[255]]], axis=1)
    values = lovasz_softmax(logits, labels, where=labels < 2)
    np.testing.assert_allclose(values, (0.416667, 0.45), atol=1e-6)
    mean = resolve("losses", "lovasz_softmax")().mean(logits, labels, where=labels < 2)
    np.testing.assert_allclose(mean, 0.433333, atol=1e-6)


def test_hinge_values_by_hand():
    logits, labels = np.asarray([[[1], [-1], [0.5]]], np.float32), np.asarray([[[1], [1], [0]]], np.int32)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(lovasz_hinge(x, labels)))(logits)
    np.testing.assert_allclose(value, 1.25, rtol=1e-6)
    # Errors 0, 2, 1.5; J grows by 1/2 at the first, by 1/6 at the second.
    np.testing.assert_allclose(gradient.ravel(), (0, -1 / 2, 1 / 6), rtol=1e-6)


@pytest.mark.parametrize("name", ["lovasz_softmax", "lovasz_hinge"])
@pytest.mark.parametrize("classes", ["present", "all", (1, 3)])
@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 6), (2, 1, 4, 7)])
def test_numpy_twin(name, classes, per_image, shape):
    logits, labels, where = example(shape=shape)
    where[1] = False
    expected, parts = lovasz_numpy(name, logits, labels, where, classes, per_image)
    loss = resolve("losses", name)(classes=classes, per_image=per_image)
    np.testing.assert_allclose(loss(logits, labels, where=where), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(loss.counts(labels, where=where, num_classes=4), parts)
    mean = jax.jit(lambda x, y, w: loss.mean(x, y, where=w))(logits, labels, where)
    np.testing.assert_allclose(mean, expected.sum() / parts.sum(), rtol=1e-5)
    # With a gradient another sort runs.
    value, _ = jax.value_and_grad(lambda x: loss.mean(x, labels, where=where))(jnp.asarray(logits))
    np.testing.assert_allclose(value, mean, rtol=1e-6)


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("dtype", [bool, np.int32, np.uint8])
def test_hinge_multi_hot_targets_and_masks(per_image, dtype):
    rng = np.random.default_rng(0)
    logits, where = rng.normal(0, 2, (3, 4, 5, 2)).astype(np.float32), rng.random((3, 4, 5, 2)) < 0.7
    targets = rng.integers(0, 2, (3, 4, 5, 2)).astype(dtype)
    targets[0, ..., 1], where[1, ..., 0] = 0, False
    for mask in (where, where.any(axis=-1)):
        for classes in ("present", "all"):
            wide = np.broadcast_to(mask if mask.ndim == 4 else mask[..., None], where.shape)
            expected, parts = lovasz_numpy("lovasz_hinge", logits, targets.astype(np.int32), wide, classes, per_image)
            loss = resolve("losses", "lovasz_hinge")(classes=classes, per_image=per_image, multi_hot=True)
            np.testing.assert_allclose(loss(logits, targets, where=mask), expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(loss.counts(targets, where=mask, num_classes=2), parts)


def test_extension_agrees_with_the_jaccard_loss_of_every_set():
    """At errors of 0 and 1 the extension is the Jaccard loss of the wrong pixels: what makes it an extension."""
    for truth in range(16):
        positive = np.asarray([truth >> i & 1 for i in range(4)], bool)
        for wrong in range(16):
            errors = np.asarray([wrong >> i & 1 for i in range(4)], np.float32)
            predicted = positive ^ (errors > 0)
            union = np.sum(predicted | positive)
            expected = 1 - np.sum(predicted & positive) / union if union else 0.0
            np.testing.assert_allclose(lovasz_extension(errors, positive), expected, atol=1e-6)


def test_extension_is_convex_and_slopes_are_subgradients():
    rng = np.random.default_rng(0)
    positive = rng.random(12) < 0.4
    a, b = np.round(rng.random((2, 50, 12)) * 4).astype(np.float32) / 4  # many equal errors
    wide = np.broadcast_to(positive, a.shape)
    value, slopes = lovasz_slopes(jnp.asarray(a), jnp.asarray(wide))
    np.testing.assert_allclose(value, lovasz_extension(jnp.asarray(a), jnp.asarray(wide)), rtol=1e-6)
    np.testing.assert_allclose(value, np.sum(slopes * a, axis=-1), rtol=1e-6)  # positively homogeneous
    above = value + np.sum(slopes * (b - a), axis=-1)
    assert np.all(lovasz_extension(jnp.asarray(b), jnp.asarray(wide)) >= above - 1e-6)
    np.testing.assert_allclose(np.sum(slopes, axis=-1), 1.0, rtol=1e-6)  # J of every pixel wrong


@pytest.mark.parametrize("bins", [17, 1 << 16])
def test_bins(bins):
    """Exact where errors are levels already; otherwise within a level; absent classes and void as in the sort."""
    rng = np.random.default_rng(0)
    positive = jnp.asarray(rng.random((4, 300)) < np.asarray([[0.5], [0.1], [0.0], [1.0]]))
    levels = jnp.asarray(rng.integers(0, 17, (4, 300)) / 16, jnp.float32)
    value, slopes = binned_slopes(levels, positive, bins if bins == 17 else 65 * 16 + 1)
    np.testing.assert_allclose(value, lovasz_extension(levels, positive), rtol=1e-5)
    np.testing.assert_allclose(np.sum(slopes, axis=-1), 1.0, rtol=1e-5)
    errors = jnp.asarray(rng.random((4, 300)), jnp.float32)
    exact, value = lovasz_extension(errors, positive), binned_slopes(errors, positive, bins)[0]
    assert np.all(value <= exact + 1e-6) and np.all(value >= exact - 1 / (bins - 1) - 1e-6)
    logits, labels, where = example()
    found = lovasz_softmax(logits, labels, where=where, bins=1 << 20)
    np.testing.assert_allclose(found, lovasz_softmax(logits, labels, where=where), atol=2e-6)


def test_absent_class_is_the_largest_error():
    errors = jnp.asarray([[0.1, 0.7, 0.3]], jnp.float32)
    value, slopes = lovasz_slopes(errors, jnp.zeros((1, 3), bool))
    np.testing.assert_allclose(value, [0.7])
    np.testing.assert_array_equal(slopes, [[0.0, 1.0, 0.0]])


@pytest.mark.parametrize(("name", "options"), [("lovasz_softmax", {}), ("lovasz_hinge", {})])
@pytest.mark.parametrize("per_image", [True, False])
def test_gradients(name, options, per_image):
    logits, labels, where = example(shape=(2, 3, 3))
    loss = resolve("losses", name)(per_image=per_image, classes="all", **options)
    weights = np.random.default_rng(1).random(np.shape(loss(logits, labels, where=where)))
    with jax.enable_x64(True):
        check_grads(
            lambda x: jnp.sum(loss(x, labels, where=where) * weights), (jnp.asarray(logits, jnp.float64),), 1, ["rev"]
        )


def test_gradient_does_not_depend_on_the_order_of_pixels():
    logits, labels, where = example(shape=(1, 6, 7))
    gradient = jax.grad(lambda x, y, w: jnp.mean(lovasz_softmax(x, y, where=w)))
    order = np.random.default_rng(0).permutation(42)
    shuffled = [a.reshape(42, *a.shape[3:])[order].reshape(a.shape) for a in (logits, labels, where)]
    expected = np.asarray(gradient(logits, labels, where)).reshape(42, -1)[order].reshape(logits.shape)
    np.testing.assert_allclose(gradient(*shuffled), expected, atol=1e-7)


def test_many_pixels_keep_their_digits():
    """Slopes from counts: differences of a float32 Jaccard loss would be 0 or 6e-8 here, whatever the pixel."""
    n = 1 << 18
    rng = np.random.default_rng(0)
    errors, positive = rng.random(n).astype(np.float32), rng.random(n) < 0.5
    value, slopes = jax.jit(lovasz_slopes)(errors, positive)
    order = np.argsort(-errors, kind="stable")
    own = positive[order]
    jaccard = 1 - (own.sum() - np.cumsum(own)) / (own.sum() + np.cumsum(~own))
    growth = np.diff(jaccard, prepend=0.0)
    np.testing.assert_allclose(value, np.sum(errors[order] * growth), rtol=1e-5)
    unique = np.concatenate([[True], np.diff(errors[order]) != 0])
    unique &= np.concatenate([unique[1:], [True]])
    assert unique.mean() > 0.9
    np.testing.assert_allclose(np.asarray(slopes)[order][unique], growth[unique], rtol=1e-4, atol=1e-13)


@pytest.mark.parametrize("name", ["lovasz_softmax", "lovasz_hinge"])
@pytest.mark.parametrize("per_image", [True, False])
def test_mask_equals_subset(name, per_image):
    logits, labels, where = example()
    where[:1], where[:, :, 4:] = True, False
    labels = np.where(labels == 255, 0, labels)
    loss = resolve("losses", name)(per_image=per_image)
    masked = loss(logits[:1], labels[:1], where=where[:1])
    np.testing.assert_allclose(masked, loss(logits[:1, :, :4], labels[:1, :, :4]), rtol=1e-6)


def test_right_and_certain():
    labels = np.asarray([[[0, 1], [1, 2]]], np.int32)
    logits = jnp.asarray(2e4 * np.eye(3)[labels] - 1e4, jnp.float32)
    for name in ("lovasz_softmax", "lovasz_hinge"):
        loss = resolve("losses", name)()
        value, gradient = jax.value_and_grad(lambda x: loss.mean(x, labels))(logits)  # noqa: B023
        assert value == 0
        np.testing.assert_array_equal(gradient, np.zeros_like(logits))


def test_nan_is_loud():
    logits, labels, where = example()
    logits[where] = np.where(np.arange(where.sum())[:, None] == 0, np.nan, logits[where])
    assert np.isnan(resolve("losses", "lovasz_softmax")().mean(logits, labels, where=where))


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("lovasz_softmax", {"classes": "some"}, "lovasz_softmax.classes.*present, all"),
        ("lovasz_softmax", {"classes": (0, 0)}, "once"),
        ("lovasz_softmax", {"bins": 1}, "lovasz_softmax.bins"),
        ("lovasz_hinge", {"classes": (-1,)}, "at least 0"),
    ],
)
def test_bad_options(name, options, says):
    with pytest.raises(JaxsegError, match=says):
        resolve("losses", name)(**options)


def test_bad_input():
    logits, labels, where = example()
    with pytest.raises(ValueError, match=r"class 4 .* not in 0\.\.3"):
        lovasz_softmax(logits, labels, where=where, classes=(4,))
    with pytest.raises(ValueError, match="multi_hot=True takes labels"):
        resolve("losses", "lovasz_hinge")(multi_hot=True)(logits, labels, where=where)
    big = jax.ShapeDtypeStruct((1, 1 << 16, 1 << 15, 2), jnp.float32)
    with pytest.raises(ValueError, match="2.31"):
        jax.eval_shape(lovasz_softmax, big, jax.ShapeDtypeStruct(big.shape[:-1], jnp.int32))
