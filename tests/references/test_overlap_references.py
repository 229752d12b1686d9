"""Overlap and Lovasz losses against the libraries of others, values and gradients, where these are installed."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.losses.dice import dice
from jaxseg.losses.generalized_dice import generalized_dice
from jaxseg.losses.jaccard import jaccard
from jaxseg.losses.lovasz_hinge import lovasz_hinge
from jaxseg.losses.lovasz_softmax import lovasz_softmax
from jaxseg.losses.tversky import tversky
from tests.references.record import record_difference

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def _warnings_of_others():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def library(name):
    """The module and its name with version; imports of others warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip(name)
    return module, f"{name} {module.__version__}"


def example(void=0.2, classes=4, shape=(3, 16, 17), seed=0):
    """Logits, labels without class 3 anywhere and without class 2 in the first image, mask."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes - 1, shape).astype(np.int32)
    labels[0] = np.minimum(labels[0], 1)
    where = rng.random(shape) >= void
    logits = rng.normal(0, 2, (*shape, classes)).astype(np.float32)
    return logits, np.where(where, labels, 255).astype(np.int32), where


def same(name, reference, ours, theirs, logits, labels, *, tolerance=2e-6):
    """Both losses as scalars of logits, and their gradients, agree.

    `ours` takes logits `[b, h, w, c]`; `theirs` torch logits `[b, c, h, w]` and labels.
    """
    value, gradient = jax.value_and_grad(ours)(jnp.asarray(logits))
    x = torch.tensor(np.moveaxis(logits, -1, 1).copy(), requires_grad=True)
    other = theirs(x, torch.tensor(labels.astype(np.int64)))
    other.backward()
    other_gradient = np.moveaxis(x.grad.numpy(), 1, -1)
    found = max(abs(float(value) - other.item()), np.abs(gradient - other_gradient).max())
    record_difference(name, reference, found)
    assert np.abs(gradient).max() > 1e-5
    np.testing.assert_allclose(value, other.item(), atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(gradient, other_gradient, atol=tolerance * np.abs(gradient).max() * 10)


@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("name", ["dice", "jaccard"])
def test_smp_dice_and_jaccard(name, smooth):
    """Theirs: over the batch; an absent class counts as 0; its smooth in Dice counts twice; no void in Jaccard."""
    smp, version = library("segmentation_models_pytorch")
    logits, labels, where = example(void=0.2 if name == "dice" else 0.0)
    if name == "dice":
        function, own, theirs = dice, 2 * smooth, smp.losses.DiceLoss("multiclass", smooth=smooth, ignore_index=255)
    else:
        function, own, theirs = jaccard, smooth, smp.losses.JaccardLoss("multiclass", smooth=smooth)
    ours = lambda x: jnp.mean(function(x, labels, where=where, smooth=own, per_image=False))  # noqa: E731
    same(name, f"{version} {type(theirs).__name__}", ours, theirs, logits, labels)


@pytest.mark.parametrize("gamma", [1.0, 0.75])
def test_smp_tversky(gamma):
    """Theirs raises the mean to the power, where the paper raises each class."""
    smp, version = library("segmentation_models_pytorch")
    logits, labels, where = example()
    theirs = smp.losses.TverskyLoss("multiclass", alpha=0.3, beta=0.7, gamma=gamma, smooth=1.0, ignore_index=255)
    ours = lambda x: jnp.mean(tversky(x, labels, where=where, smooth=1.0, per_image=False)) ** gamma  # noqa: E731
    same("tversky", f"{version} TverskyLoss", ours, theirs, logits, labels)


def test_smp_dice_multilabel():
    smp, version = library("segmentation_models_pytorch")
    logits, _, _ = example()
    targets = np.random.default_rng(1).integers(0, 2, logits.shape).astype(np.int32)
    theirs = smp.losses.DiceLoss("multilabel", smooth=1.0)
    ours = lambda x: jnp.mean(dice(x, targets, smooth=2.0, per_image=False, activation="sigmoid"))  # noqa: E731
    same("dice", f"{version} DiceLoss multilabel", ours, lambda x, y: theirs(x, y.movedim(-1, 1)), logits, targets)


@pytest.mark.parametrize("per_image", [True, False])
def test_smp_lovasz_softmax(per_image):
    """Theirs: the mean over classes present, of the batch, or of each image and then of images."""
    smp, version = library("segmentation_models_pytorch")
    logits, labels, where = example()
    theirs = smp.losses.LovaszLoss("multiclass", per_image=per_image, ignore_index=255)

    def ours(x):
        values = lovasz_softmax(x, labels, where=where, per_image=per_image)
        present = jnp.asarray((2, 3, 3) if per_image else 3, jnp.float32)
        return jnp.mean(jnp.sum(values, axis=-1) / present)

    same("lovasz_softmax", f"{version} LovaszLoss per_image={per_image}", ours, theirs, logits, labels)


@pytest.mark.parametrize("per_image", [True, False])
def test_smp_lovasz_hinge(per_image):
    """Their gradient is a difference of float32 Jaccard losses, which has four correct digits here."""
    smp, version = library("segmentation_models_pytorch")
    logits, labels, where = example(classes=3)
    logits, labels = logits[..., :1], np.minimum(labels, 1)
    theirs = smp.losses.LovaszLoss("binary", per_image=per_image, ignore_index=255)
    void = np.where(where, labels, 255)

    def ours(x):
        return jnp.mean(lovasz_hinge(x, labels[..., None], where=where, per_image=per_image))

    same("lovasz_hinge", f"{version} LovaszLoss per_image={per_image}", ours, theirs, logits, void, tolerance=5e-6)


MONAI = [
    ("dice", {}, {}),
    ("dice", {"squared": True}, {"squared_pred": True}),
    ("dice", {"per_image": False}, {"batch": True}),
    ("dice", {"classes": (1, 2, 3)}, {"include_background": False}),
    ("dice", {"activation": "sigmoid"}, {"softmax": False, "sigmoid": True}),
    ("jaccard", {"smooth": 0.05}, {"jaccard": True}),
    ("tversky", {}, {"alpha": 0.3, "beta": 0.7}),
    ("tversky", {"per_image": False}, {"alpha": 0.3, "beta": 0.7, "batch": True}),
    ("generalized_dice", {}, {}),
    ("generalized_dice", {"weighting": "simple"}, {"w_type": "simple"}),
    ("generalized_dice", {"weighting": "uniform"}, {"w_type": "uniform"}),
    ("generalized_dice", {"per_image": False}, {"batch": True}),
]


@pytest.mark.parametrize(("name", "options", "other_options"), MONAI)
def test_monai(name, options, other_options):
    """Theirs has no void and averages over all classes; its smooth in Jaccard counts half."""
    monai, version = library("monai")
    logits, labels, _ = example(void=0.0)
    functions = {"dice": dice, "jaccard": jaccard, "tversky": tversky, "generalized_dice": generalized_dice}
    classes = {"dice": "DiceLoss", "jaccard": "DiceLoss", "tversky": "TverskyLoss"}
    own = {"smooth": 0.1, "classes": "all"} | ({"absent_weight": "max"} if name == "generalized_dice" else {}) | options
    other = {"softmax": True, "to_onehot_y": True, "smooth_nr": 0.1, "smooth_dr": 0.1} | other_options
    theirs = getattr(monai.losses, classes.get(name, "GeneralizedDiceLoss"))(**other)

    def ours(x):
        values = functions[name](x, labels, **own)
        return jnp.mean(values[..., 1:]) if isinstance(own["classes"], tuple) else jnp.mean(values)

    reference = f"{version} {type(theirs).__name__} {other_options or ''}".strip()
    same(name, reference, ours, lambda x, y: theirs(x, y[:, None]), logits, labels)


@pytest.mark.parametrize("name", ["dice", "tversky"])
def test_kornia_dice_and_tversky(name):
    """Theirs: the mean over the classes present in each image, and then over images."""
    kornia, version = library("kornia")
    logits, labels, where = example()
    present = jnp.asarray((2, 3, 3), jnp.float32)
    if name == "dice":
        function = dice
        theirs = lambda x, y: kornia.losses.dice_loss(x, y, average="macro", ignore_index=255)  # noqa: E731
    else:
        function = tversky
        theirs = lambda x, y: kornia.losses.tversky_loss(x, y, alpha=0.3, beta=0.7, ignore_index=255)  # noqa: E731
    ours = lambda x: jnp.mean(jnp.sum(function(x, labels, where=where), axis=-1) / present)  # noqa: E731
    same(name, f"{version} {name}_loss", ours, theirs, logits, labels)


def test_kornia_lovasz():
    """Theirs averages over all classes; an absent one is its largest probability."""
    kornia, version = library("kornia")
    logits, labels, _ = example(void=0.0)
    ours = lambda x: jnp.mean(lovasz_softmax(x, labels, per_image=True, classes="all"))  # noqa: E731
    theirs = kornia.losses.lovasz_softmax_loss
    same("lovasz_softmax", f"{version} lovasz_softmax_loss", ours, theirs, logits, labels)
    binary = np.minimum(labels, 1)
    hinge = lambda x: jnp.mean(lovasz_hinge(x, binary[..., None]))  # noqa: E731
    theirs = kornia.losses.lovasz_hinge_loss
    same("lovasz_hinge", f"{version} lovasz_hinge_loss", hinge, theirs, logits[..., :1], binary)


def test_torchmetrics_dice_of_hard_predictions():
    """At probabilities of 0 and 1 the loss is 1 minus the metric."""
    _, version = library("torchmetrics")
    segmentation = pytest.importorskip("torchmetrics.functional.segmentation")
    logits, labels, _ = example(void=0.0)
    hard = logits.argmax(-1)
    score = segmentation.dice_score(
        torch.tensor(hard), torch.tensor(labels.astype(np.int64)), num_classes=4, average="none", input_format="index"
    )
    loss = dice(1e4 * np.eye(4, dtype=np.float32)[hard], labels)
    present = (labels[..., None] == np.arange(4)).any((1, 2))
    difference = np.abs(1 - np.asarray(loss) - score.numpy())[present]
    record_difference("dice", f"{version} dice_score", difference)
    assert difference.max() < 1e-6
