"""Combo loss against values by hand and a NumPy twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.losses import combo as module
from jaxseg.losses.combo import combo as eager_combo
from tests.losses.test_cross_entropy import LABELS, LOGITS, example

OPTIONS = ("alpha", "beta", "smooth", "activation", "per_image", "classes")
combo = jax.jit(eager_combo, static_argnames=OPTIONS)


def mean(loss, logits, labels, where):
    return jax.jit(lambda x, y, w: loss.mean(x, y, where=w))(logits, labels, where)


def combo_numpy(logits, hot, where, *, alpha, beta, smooth, activation):
    """One region: logits, targets, mask `[n, c]`; `[c]` in float64."""
    x = logits.astype(np.float64)
    p = np.exp(x) / np.exp(x).sum(-1, keepdims=True) if activation == "softmax" else 1 / (1 + np.exp(-x))
    result = np.zeros(x.shape[-1])
    for c in range(x.shape[-1]):
        q, y = p[where[:, c], c], hot[where[:, c], c]
        entropy = np.mean(-beta * y * np.log(q) - (1 - beta) * (1 - y) * np.log(1 - q)) if q.size else 0.0
        total = q.sum() + y.sum() + smooth
        dice = (2 * (q * y).sum() + smooth) / total if total else 1.0
        result[c] = alpha * entropy - (1 - alpha) * dice
    return result


def test_paper_pixels():
    found = combo(LOGITS[None], LABELS[None], smooth=0.0)
    # Class 1: half of .498703 by beta, and Dice .56; class 0: TP 1.2, FP .3, FN .8, Dice 2.4 / 3.5.
    expected = [0.5 * 0.249351538 - 0.5 * 2.4 / 3.5, 0.5 * 0.249351538 - 0.5 * 0.56]
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("alpha", "beta", "smooth"), [(0.5, 0.5, 1.0), (0.2, 0.7, 0.0), (1.0, 0.4, 1.0), (0, 0.5, 1)])
def test_numpy_twin(per_image, activation, alpha, beta, smooth):
    logits, labels, where = example(shape=(3, 4, 5))
    where[1, :, 2:] = False
    labels = np.where(where, np.minimum(labels, 2), 255).astype(np.int32)  # class 3 is nowhere
    hot, wide = labels[..., None] == np.arange(4), np.broadcast_to(where[..., None], logits.shape)
    options = {"alpha": alpha, "beta": beta, "smooth": smooth, "activation": activation}
    found = combo(logits, labels, where=where, per_image=per_image, **options)
    regions = [(logits[i], hot[i], wide[i]) for i in range(3)] if per_image else [(logits, hot, wide)]
    expected = [combo_numpy(*(a.reshape(-1, 4) for a in region), **options) for region in regions]
    np.testing.assert_allclose(found, expected if per_image else expected[0], rtol=1e-5, atol=1e-6)
    loss = module.build(per_image=per_image, **options)
    assert loss.whole_batch is not per_image
    np.testing.assert_allclose(mean(loss, logits, labels, where), np.mean(expected), rtol=1e-5)
    present = module.build(per_image=per_image, classes="present", **options)
    there = [hot[i][where[i]].any(0) for i in range(3)] if per_image else [hot[where].any(0)]
    there = np.asarray(expected)[np.asarray(there)].mean()
    np.testing.assert_allclose(mean(present, logits, labels, where), there, rtol=1e-5)


def test_multi_hot_targets_and_masks_by_class():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 4, 3)).astype(np.float32)
    hot, where = rng.random(logits.shape) < 0.4, rng.random(logits.shape) < 0.7
    found = combo(logits, hot, where=where, activation="sigmoid")
    options = {"alpha": 0.5, "beta": 0.5, "smooth": 1.0, "activation": "sigmoid"}
    expected = [combo_numpy(*(a[i].reshape(-1, 3) for a in (logits, hot, where)), **options) for i in range(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_certain_pixels_are_exact_and_finite(activation):
    """log(1 - p) of a class that is certain and wrong is minus its margin, not the log of a rounded 0."""
    logits = jnp.asarray([[[[80.0, 0.0, -5.0]], [[0.0, -300.0, 1e4]]]])
    labels = np.asarray([[[1], [0]]], np.int32)
    options = {"alpha": 1.0, "beta": 0.5, "activation": activation, "classes": (0, 2)}
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(combo(x, labels, **options)))(logits)
    # Class 0: log(1 - p) = -80 at the first pixel, log p = -1e4 at the second (sigmoid: ln 2); class 2: -1e4 there.
    first, second = (80 - np.log1p(np.exp(-5) * 0) + 1e4) / 4, 1e4 / 4
    if activation == "sigmoid":
        first, second = (80 + np.log(2)) / 4, (1e4 + np.log1p(np.exp(-5))) / 4
    np.testing.assert_allclose(value, first + second, rtol=1e-5)
    assert np.all(np.isfinite(gradient))


def test_one_class_needs_the_sigmoid():
    labels = np.zeros((1, 2, 2), np.int32)
    with pytest.raises(ValueError, match="activation='sigmoid'"):
        combo(np.zeros((1, 2, 2, 1), np.float32), labels)
    assert np.all(np.isfinite(combo(np.zeros((1, 2, 2, 1), np.float32), labels, activation="sigmoid")))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"alpha": 1.5}, "alpha = 1.5"),
        ({"beta": -0.1}, "beta = -0.1"),
        ({"smooth": -1.0}, "smooth = -1.0"),
        ({"activation": "relu"}, "softmax, sigmoid"),
        ({"classes": "some"}, "classes = 'some'"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises(JaxsegError, match=says):
        module.build(**options)
