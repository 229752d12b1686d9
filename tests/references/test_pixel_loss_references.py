"""Pixel losses against the libraries of others, values and gradients, where these are installed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.losses import bootstrapped_cross_entropy, cross_entropy, focal, poly, sigmoid_cross_entropy, sigmoid_focal
from tests.references.record import record_difference
from tests.references.test_overlap_references import _warnings_of_others, example, library, same  # noqa: F401

torch = pytest.importorskip("torch")
functional = torch.nn.functional
TORCH = f"torch {torch.__version__}"
WEIGHTS = (0.5, 2.0, 1.0, 1.5)


def mean_of(build, labels, where, **options):
    return lambda x: build(**options).mean(x, labels, where=where)


def one_hot(labels):
    return functional.one_hot(torch.where(labels < 4, labels, 0), 4).movedim(-1, 1).float()


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(weights, smoothing):
    logits, labels, where = example()
    normalizer = "valid_pixels" if weights is None else "class_weights"
    ours = mean_of(
        cross_entropy.build, labels, where, class_weights=weights, label_smoothing=smoothing, normalizer=normalizer
    )
    weight = None if weights is None else torch.tensor(weights)

    def theirs(x, y):
        return functional.cross_entropy(x, y, weight=weight, ignore_index=255, label_smoothing=smoothing)

    same("cross_entropy", f"{TORCH} cross_entropy", ours, theirs, logits, labels)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 1.0])
def test_bootstrapped_cross_entropy(fraction):
    logits, labels, where = example()
    kept = [-int(-fraction * n // 1) for n in where.sum((1, 2))]

    def theirs(x, y):
        loss = functional.cross_entropy(x, y, ignore_index=255, reduction="none").flatten(1)
        return sum(torch.topk(image, k).values.sum() for image, k in zip(loss, kept, strict=True)) / sum(kept)

    ours = mean_of(bootstrapped_cross_entropy.build, labels, where, fraction=fraction)
    same("bootstrapped_cross_entropy", f"{TORCH} cross_entropy and topk", ours, theirs, logits, labels)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_focal_kornia(gamma):
    kornia, name = library("kornia")
    logits, labels, where = example()

    def theirs(x, y):
        loss = kornia.losses.focal_loss(x, y, alpha=None, gamma=gamma, reduction="none", ignore_index=255)
        return loss.sum() / float(where.sum())

    same("focal", f"{name} focal_loss", mean_of(focal.build, labels, where, gamma=gamma), theirs, logits, labels)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_focal_monai(gamma):
    monai, name = library("monai")
    logits, labels, where = example(void=0.0)
    for softmax, build in ((True, focal.build), (False, sigmoid_focal.build)):
        criterion = monai.losses.FocalLoss(to_onehot_y=True, gamma=gamma, use_softmax=softmax)
        scale = 4 if softmax else 1  # its mean is over pixels and classes

        def theirs(x, y, criterion=criterion, scale=scale):
            return criterion(x, y[:, None]) * scale

        options = {"gamma": gamma} if softmax else {"gamma": gamma, "alpha": None}
        title = f"{name} FocalLoss, {'softmax' if softmax else 'sigmoid'}"
        same(
            build.__module__.rpartition(".")[2], title, mean_of(build, labels, where, **options), theirs, logits, labels
        )


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 0.5), (None, 3.0)])
def test_sigmoid_focal_torchvision(alpha, gamma):
    torchvision, name = library("torchvision")
    logits, labels, where = example(void=0.0)

    def theirs(x, y):
        given = -1 if alpha is None else alpha
        return torchvision.ops.sigmoid_focal_loss(x, one_hot(y), alpha=given, gamma=gamma, reduction="mean")

    ours = mean_of(sigmoid_focal.build, labels, where, alpha=alpha, gamma=gamma)
    same("sigmoid_focal", f"{name} sigmoid_focal_loss", ours, theirs, logits, labels)


def test_sigmoid_focal_kornia():
    kornia, name = library("kornia")
    logits, labels, where = example(void=0.0)

    def theirs(x, y):
        return kornia.losses.binary_focal_loss_with_logits(x, one_hot(y), alpha=0.3, gamma=1.5, reduction="mean")

    ours = mean_of(sigmoid_focal.build, labels, where, alpha=0.3, gamma=1.5)
    same("sigmoid_focal", f"{name} binary_focal_loss_with_logits", ours, theirs, logits, labels)


def test_sigmoid_focal_segmentation_models_pytorch():
    smp, name = library("segmentation_models_pytorch")
    logits, labels, where = example()
    criterion = smp.losses.FocalLoss("multiclass", alpha=0.25, gamma=2.0, ignore_index=255)
    ours = mean_of(sigmoid_focal.build, labels, where)
    same("sigmoid_focal", f"{name} FocalLoss", ours, criterion, logits, labels)


@pytest.mark.parametrize("pos_weight", [None, (3.0, 1.0, 0.5, 2.0)])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_sigmoid_cross_entropy(pos_weight, weights):
    logits, labels, where = example(void=0.0)
    columns = [None if w is None else torch.tensor(w)[:, None, None] for w in (weights, pos_weight)]
    criterion = torch.nn.BCEWithLogitsLoss(weight=columns[0], pos_weight=columns[1])
    ours = mean_of(sigmoid_cross_entropy.build, labels, where, pos_weight=pos_weight, class_weights=weights)
    name = f"{TORCH} BCEWithLogitsLoss"
    same("sigmoid_cross_entropy", name, ours, lambda x, y: criterion(x, one_hot(y)), logits, labels)


def test_sigmoid_cross_entropy_segmentation_models_pytorch():
    smp, name = library("segmentation_models_pytorch")
    logits, labels, where = example(void=0.0)
    criterion = smp.losses.SoftBCEWithLogitsLoss(smooth_factor=0.05, ignore_index=None)
    ours = mean_of(sigmoid_cross_entropy.build, labels, where, label_smoothing=0.1)  # it moves by all of its factor
    name = f"{name} SoftBCEWithLogitsLoss"
    same("sigmoid_cross_entropy", name, ours, lambda x, y: criterion(x, one_hot(y)), logits, labels)


@pytest.mark.parametrize("epsilon", [-1.0, 1.0, 4.0])
def test_poly_optax(epsilon):
    logits, labels, where = example(void=0.0)
    hot = jnp.asarray(np.eye(4, dtype=np.float32)[labels])
    functions = [
        lambda x: jnp.mean(poly.poly(x, labels, epsilon=epsilon)),
        lambda x: jnp.mean(optax.losses.poly_loss_cross_entropy(x, hot, epsilon=epsilon)),
    ]
    (value, gradient), (other, other_gradient) = (jax.value_and_grad(f)(jnp.asarray(logits)) for f in functions)
    difference = max(abs(float(value - other)), float(jnp.max(jnp.abs(gradient - other_gradient))))
    record_difference("poly", f"optax {optax.__version__} poly_loss_cross_entropy", difference)
    np.testing.assert_allclose(value, other, rtol=2e-6)
    np.testing.assert_allclose(gradient, other_gradient, atol=1e-8)
