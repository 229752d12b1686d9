"""Focal (softmax and sigmoid), poly and sigmoid cross-entropy, against values by hand and NumPy twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.losses import focal as focal_module
from jaxseg.losses import poly as poly_module
from jaxseg.losses import sigmoid_cross_entropy as bce_module
from jaxseg.losses import sigmoid_focal as sigmoid_module
from jaxseg.losses.focal import focal
from jaxseg.losses.modulation import modulated
from jaxseg.losses.poly import poly
from jaxseg.losses.sigmoid_cross_entropy import sigmoid_cross_entropy
from jaxseg.losses.sigmoid_focal import sigmoid_focal
from tests.losses.test_cross_entropy import LABELS, LOGITS, cross_entropy_numpy, example

GAMMAS = [0, 0.1, 0.5, 1, 2, 3.5, 5]


def multilabel_example(seed=0, shape=(2, 4, 5, 3)):
    rng = np.random.default_rng(seed)
    where = rng.random(shape) < 0.7
    return rng.normal(0, 3, shape).astype(np.float32), rng.integers(0, 2, shape).astype(np.int32), where


def sigmoid_numpy(logits, targets, where, *, smoothing=0.0, pos_weight=None, weights=None, gamma=0.0, alpha=None):
    """The formulas, an entry at a time, in float64."""
    result = np.zeros(logits.shape)
    for at in np.ndindex(logits.shape):
        if not where[at]:
            continue
        x, y, c = float(logits[at]), targets[at], at[-1]
        p = 1 / (1 + np.exp(-x))
        t = (1 - smoothing) * y + smoothing / 2
        v = 1.0 if pos_weight is None else pos_weight[c]
        loss = -v * t * np.log(p) - (1 - t) * np.log(1 - p)
        p_t = p if y else 1 - p
        loss *= (1 - p_t) ** gamma
        loss *= 1 if alpha is None else alpha if y else 1 - alpha
        result[at] = loss * (1 if weights is None else weights[c])
    return result


class TestModulation:
    @pytest.mark.parametrize("gamma", GAMMAS)
    def test_value_and_gradient_over_all_probabilities(self, gamma):
        loss = np.concatenate([[0.0, 1e-30], np.logspace(-12, 2, 200), [1e4]]).astype(np.float32)
        value, gradient = jax.vmap(jax.value_and_grad(lambda x: modulated(x, gamma)))(jnp.asarray(loss))
        exact = loss.astype(np.float64)
        u = -np.expm1(-exact)
        np.testing.assert_allclose(value, u**gamma * exact, rtol=1e-5, atol=1e-37)
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = u**gamma + gamma * u ** (gamma - 1) * np.exp(-exact) * exact
        slope[0] = float(gamma == 0)  # the limit at p = 1
        np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-37)

    def test_nan_stays(self):
        assert np.isnan(modulated(jnp.float32(np.nan), 2.0))

    @pytest.mark.parametrize("gamma", [-1, float("nan"), float("inf")])
    def test_bad_gamma(self, gamma):
        with pytest.raises(ValueError, match="gamma"):
            focal(LOGITS, LABELS, gamma=gamma)


class TestFocal:
    def test_paper_pixels(self):
        np.testing.assert_allclose(focal_module.build().mean(LOGITS, LABELS), 0.123630383, rtol=1e-6)

    @pytest.mark.parametrize("gamma", GAMMAS)
    @pytest.mark.parametrize("weights", [None, (0.5, 2.0, 0.0, 1.5)])
    def test_numpy_twin(self, gamma, weights):
        logits, labels, where = example()
        plain = cross_entropy_numpy(logits, labels, where)
        expected = cross_entropy_numpy(logits, labels, where, class_weights=weights) * (1 - np.exp(-plain)) ** gamma
        found = focal(logits, labels, where=where, gamma=gamma, class_weights=weights)
        np.testing.assert_allclose(found, np.where(where, expected, 0), rtol=2e-5, atol=2e-6)

    @pytest.mark.parametrize("gamma", GAMMAS)
    def test_a_pixel_that_is_certain_has_a_finite_gradient(self, gamma):
        logits = jnp.asarray([[[60.0, 0.0], [0.0, 60.0], [0.0, 0.0], [1e4, -1e4]]])
        labels = np.asarray([[0, 0, 0, 0]], np.int32)
        value, gradient = jax.value_and_grad(lambda x: jnp.sum(focal(x, labels, gamma=gamma)))(logits)
        np.testing.assert_allclose(value, 60 + np.log(2) * 0.5**gamma, rtol=1e-6)
        np.testing.assert_allclose(gradient[0, 1], [-1, 1], rtol=1e-6)
        np.testing.assert_allclose(gradient[0, [0, 3]], np.zeros((2, 2)), atol=1e-12)


class TestPoly:
    def test_by_hand(self):
        expected = [[0.22314355 + 0.2, 0.91629073 + 0.6, 0.35667494 + 0.3]]
        np.testing.assert_allclose(poly(LOGITS, LABELS), expected, rtol=1e-6)
        expected = [[0.04 * 0.22314355 + 2 * 0.008, 0.36 * 0.91629073 + 2 * 0.216, 0.09 * 0.35667494 + 2 * 0.027]]
        np.testing.assert_allclose(poly(LOGITS, LABELS, epsilon=2.0, gamma=2), expected, rtol=1e-6)

    @pytest.mark.parametrize("gamma", GAMMAS)
    def test_the_first_coefficient_of_the_series(self, gamma):
        """-log p (1 - p)^g = (1 - p)^(g + 1) (1 + (1 - p) / 2 + ...): near p = 1 the loss is 1 + epsilon times that."""
        logits = np.asarray([[[0.0, np.log(1e-3)]]], np.float32)
        rest = 1e-3 / 1.001
        for epsilon in (-0.5, 0.0, 3.0):
            found = poly(logits, np.zeros((1, 1), np.int32), epsilon=epsilon, gamma=gamma)
            np.testing.assert_allclose(found, (1 + epsilon + rest / 2) * rest ** (gamma + 1), rtol=1e-3)

    @pytest.mark.parametrize("gamma", [0, 0.5, 2])
    def test_epsilon_minus_one_takes_the_first_term_away(self, gamma):
        logits, labels, where = example()
        plain = cross_entropy_numpy(logits, labels, where)
        p = np.exp(-plain)
        expected = (1 - p) ** gamma * (plain - (1 - p))
        found = poly(logits, labels, where=where, epsilon=-1, gamma=gamma)
        np.testing.assert_allclose(found, np.where(where, expected, 0), rtol=2e-5, atol=2e-6)
        assert np.min(found) >= -1e-6

    def test_class_weights_go_over_both_parts(self):
        weighted = poly(LOGITS, LABELS, class_weights=(2.0, 0.5))
        np.testing.assert_allclose(weighted, np.asarray(poly(LOGITS, LABELS)) * [[2, 2, 0.5]], rtol=1e-6)

    def test_bad_epsilon(self):
        with pytest.raises(ValueError, match="epsilon = -2"):
            poly(LOGITS, LABELS, epsilon=-2)


class TestSigmoidCrossEntropy:
    def test_by_hand(self):
        logits = np.asarray([[[0.0, np.log(3)]]], np.float32)
        found = sigmoid_cross_entropy(logits, np.ones((1, 1, 2), bool))
        np.testing.assert_allclose(found, [[[0.69314718, 0.28768207]]], rtol=1e-6)
        found = sigmoid_cross_entropy(logits, np.asarray([[1]], np.int32))  # one-hot: 0, 1
        np.testing.assert_allclose(found, [[[0.69314718, 0.28768207]]], rtol=1e-6)
        found = sigmoid_cross_entropy(logits, np.asarray([[0]], np.int32))  # one-hot: 1, 0
        np.testing.assert_allclose(found, [[[0.69314718, 1.38629436]]], rtol=1e-6)

    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    @pytest.mark.parametrize("pos_weight", [None, 3.0, (3.0, 1.0, 0.5)])
    @pytest.mark.parametrize("weights", [None, (0.5, 2.0, 0.0)])
    def test_numpy_twin(self, smoothing, pos_weight, weights):
        logits, targets, where = multilabel_example()
        by_class = (pos_weight,) * 3 if isinstance(pos_weight, float) else pos_weight
        expected = sigmoid_numpy(logits, targets, where, smoothing=smoothing, pos_weight=by_class, weights=weights)
        options = {"label_smoothing": smoothing, "class_weights": weights, "pos_weight": pos_weight}
        found = sigmoid_cross_entropy(logits, targets, where=where, **options)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
        same = sigmoid_cross_entropy(logits, targets.astype(bool), where=where, **options)
        np.testing.assert_array_equal(same, found)

    def test_class_ids_are_one_hot(self):
        logits, labels, where = example()
        found = sigmoid_cross_entropy(logits, labels, where=where)
        wide = np.broadcast_to(where[..., None], logits.shape)
        hot = labels[..., None] == np.arange(4)
        np.testing.assert_allclose(found, sigmoid_numpy(logits, hot, wide), rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("x", [-80.0, -20.0, 20.0, 80.0])
    def test_small_losses_are_exact(self, x):
        plain = np.log1p(np.exp(-abs(x)))
        for pos_weight in (None, 1.0):
            logits = np.full((1, 1, 1), x, np.float32)
            target = np.full((1, 1, 1), x > 0)
            found = sigmoid_cross_entropy(logits, target, pos_weight=pos_weight)
            np.testing.assert_allclose(found, np.full((1, 1, 1), plain), rtol=1e-5)

    def test_gradient_is_sigmoid_minus_target(self):
        logits, targets, where = multilabel_example()
        for options in ({}, {"pos_weight": 1.0}):
            function = lambda x: jnp.sum(sigmoid_cross_entropy(x, targets, where=where, **options))  # noqa: B023, E731
            gradient = jax.grad(function)(jnp.asarray(logits))
            np.testing.assert_allclose(gradient, np.where(where, 1 / (1 + np.exp(-logits)) - targets, 0), atol=1e-6)

    def test_probabilities_are_warned_of(self):
        with pytest.warns(UserWarning, match="before the sigmoid"):
            sigmoid_cross_entropy(np.linspace(0, 1, 12, dtype=np.float32).reshape(2, 2, 3), np.zeros((2, 2), np.int32))

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"pos_weight": (1.0, 2.0)}, "pos_weight has the shape"),
            ({"pos_weight": -1.0}, "pos_weight are finite and not negative"),
            ({"class_weights": (1.0,)}, "class_weights has the shape"),
            ({"label_smoothing": 1.0}, "label_smoothing"),
        ],
    )
    def test_bad_arguments(self, options, says):
        logits, targets, where = multilabel_example()
        with pytest.raises(ValueError, match=says):
            sigmoid_cross_entropy(logits, targets, where=where, **options)

    def test_targets_other_than_0_and_1(self):
        logits, targets, where = multilabel_example()
        with pytest.raises(ValueError, match="label 2"):
            sigmoid_cross_entropy(logits, np.where(where, targets + 1, 0).astype(np.int32), where=where)


NORMALIZED = [
    ("valid_entries", lambda w, t: w.sum()),
    ("valid_pixels", lambda w, t: w.any(-1).sum()),
    ("class_weights", lambda w, t: (w * [0.5, 2.0, 1.0]).sum()),
    ("all_pixels", lambda w, t: 2 * 4 * 5),
    ("images", lambda w, t: 2),
    ("positives", lambda w, t: sum(max(1, (w[i] & t[i]).sum()) for i in range(2))),
]


class TestMultilabelNormalizers:
    @pytest.mark.parametrize("build", [bce_module.build, sigmoid_module.build])
    @pytest.mark.parametrize(("normalizer", "divisor"), NORMALIZED)
    @pytest.mark.parametrize("no_positives", [False, True])
    def test_divisors(self, build, normalizer, divisor, no_positives):
        logits, targets, where = multilabel_example()
        targets[0] *= not no_positives
        loss = build(normalizer=normalizer, class_weights=(0.5, 2.0, 1.0), multi_hot=True)
        expected = divisor(where, targets.astype(bool))
        assert float(loss.divisor(targets, where=where, num_classes=3)) == expected
        total = float(jnp.sum(loss(logits, targets, where=where)))
        np.testing.assert_allclose(loss.mean(logits, targets, where=where), total / expected, rtol=1e-6)
        # A mask of pixels stands for all classes.
        pixels = where.any(-1)
        wide = np.broadcast_to(pixels[..., None], where.shape)
        assert float(loss.divisor(targets, where=pixels, num_classes=3)) == divisor(wide, targets.astype(bool))

    @pytest.mark.parametrize(("normalizer", "divisor"), NORMALIZED)
    def test_class_ids(self, normalizer, divisor):
        rng = np.random.default_rng(0)
        labels, where = rng.integers(0, 3, (2, 4, 5)).astype(np.int32), rng.random((2, 4, 5)) < 0.6
        labels = np.where(where, labels, 255).astype(np.int32)
        loss = bce_module.build(normalizer=normalizer, class_weights=(0.5, 2.0, 1.0))
        wide = np.broadcast_to(where[..., None], (2, 4, 5, 3))
        expected = divisor(wide, labels[..., None] == np.arange(3))
        assert float(loss.divisor(labels, where=where, num_classes=3)) == expected

    @pytest.mark.parametrize("build", [bce_module.build, sigmoid_module.build])
    def test_the_form_of_the_labels_has_to_be_said(self, build):
        logits, targets, where = multilabel_example()
        with pytest.raises(ValueError, match="multi_hot=False takes labels .*class ids"):
            build().mean(logits, targets, where=where)
        with pytest.raises(ValueError, match="multi_hot=True takes labels .*0 and 1"):
            build(multi_hot=True)(logits, targets[..., 0])


class TestSigmoidFocal:
    def test_by_hand(self):
        logits = np.zeros((1, 1, 2), np.float32)
        found = sigmoid_focal(logits, np.asarray([[0]], np.int32))
        np.testing.assert_allclose(found, [[[0.04332170, 0.12996510]]], rtol=1e-6)

    @pytest.mark.parametrize("gamma", GAMMAS)
    @pytest.mark.parametrize(("alpha", "weights"), [(0.25, None), (None, (0.5, 2.0, 0.0))])
    def test_numpy_twin(self, gamma, alpha, weights):
        logits, targets, where = multilabel_example()
        expected = sigmoid_numpy(logits, targets, where, gamma=gamma, alpha=alpha, weights=weights)
        found = sigmoid_focal(logits, targets, where=where, gamma=gamma, alpha=alpha, class_weights=weights)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-9)

    @pytest.mark.parametrize("gamma", GAMMAS)
    def test_certain_entries_have_finite_gradients(self, gamma):
        logits = jnp.asarray([[[200.0, -200.0, 1e4, -1e4]]])
        hot = np.asarray([[[True, True, True, False]]])
        value, gradient = jax.value_and_grad(lambda x: jnp.sum(sigmoid_focal(x, hot, gamma=gamma, alpha=None)))(logits)
        np.testing.assert_allclose(value, 200, rtol=1e-6)
        np.testing.assert_allclose(gradient[0, 0], [0, -1, 0, 0], atol=1e-12)

    def test_bad_alpha(self):
        with pytest.raises(ValueError, match="alpha = 2"):
            sigmoid_focal(np.zeros((1, 1, 2), np.float32), np.asarray([[0]], np.int32), alpha=2)


@pytest.mark.parametrize(
    ("module", "options", "says"),
    [
        (focal_module, {"gamma": -1}, "config.loss.focal.gamma = -1"),
        (focal_module, {"gamma": "2"}, "gamma = '2'"),
        (focal_module, {"class_weights": (1.0, -2.0)}, "not negative"),
        (focal_module, {"normalizer": "positives"}, "is not one of"),
        (poly_module, {"epsilon": -2}, "config.loss.poly.epsilon = -2"),
        (poly_module, {"gamma": float("inf")}, "gamma = inf"),
        (sigmoid_module, {"alpha": 1.5}, "alpha = 1.5"),
        (sigmoid_module, {"gamma": True}, "gamma = True"),
        (sigmoid_module, {"normalizer": "mean"}, "valid_entries, valid_pixels"),
        (sigmoid_module, {"normalizer": "class_weights"}, "needs class_weights"),
        (bce_module, {"label_smoothing": 1.0}, "label_smoothing"),
        (bce_module, {"pos_weight": -1}, "pos_weight = -1"),
        (bce_module, {"pos_weight": (1.0, -1.0)}, "pos_weight"),
        (bce_module, {"normalizer": "mean"}, "sigmoid_cross_entropy.normalizer"),
    ],
)
def test_bad_options(module, options, says):
    with pytest.raises(JaxsegError, match=says):
        module.build(**options)
