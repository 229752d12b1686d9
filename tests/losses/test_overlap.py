"""Dice, Jaccard, Tversky and their kin against hand values and NumPy twins, and the soft counts they are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxseg.core.errors import JaxsegError
from jaxseg.core.names import resolve
from jaxseg.losses.dice import dice
from jaxseg.losses.focal_tversky import focal_tversky
from jaxseg.losses.generalized_dice import generalized_dice
from jaxseg.losses.jaccard import jaccard
from jaxseg.losses.log_cosh_dice import log_cosh_dice
from jaxseg.losses.overlap import error_ratio, overlap_counts, region_counts
from jaxseg.losses.tversky import tversky

# Three pixels: p = (.8, .2), (.4, .6), (.3, .7); labels 0, 0, 1. Values: spec of the losses, by hand.
LOGITS = np.log(np.asarray([[[0.8, 0.2], [0.4, 0.6], [0.3, 0.7]]], np.float32))
LABELS = np.asarray([[0, 0, 1]], np.int32)
FUNCTIONS = {
    "dice": dice,
    "focal_tversky": focal_tversky,
    "jaccard": jaccard,
    "log_cosh_dice": log_cosh_dice,
    "tversky": tversky,
}
NAMES = [*FUNCTIONS, "generalized_dice"]


def example(seed=0, shape=(3, 5, 6), classes=4, dtype=np.float32):
    """Logits, labels with void 255 and without class 3 in the first image, mask."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, shape).astype(np.int32)
    labels[0] = np.minimum(labels[0], classes - 2)
    where = rng.random(shape) < 0.7
    return rng.normal(0, 2, (*shape, classes)).astype(dtype), np.where(where, labels, 255).astype(np.int32), where


def multi_hot_example(seed=0, shape=(3, 5, 6), classes=4):
    """Logits, targets 0 and 1 a class, mask a class."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (*shape, classes)).astype(np.float32)
    return logits, rng.integers(0, 2, (*shape, classes)).astype(np.int32), rng.random((*shape, classes)) < 0.7


def counts_numpy(logits, labels, where, activation="softmax"):
    """Per image and class, a pixel at a time in float64: TP, FP, FN, sum (p - y)^2, sum y, valid pixels."""
    logits = np.asarray(logits, np.float64)
    result = np.zeros((6, *logits.shape[:-3], logits.shape[-1]))
    for at in np.ndindex(logits.shape[:-1]):
        e = np.exp(logits[at] - logits[at].max())
        for c in range(logits.shape[-1]):
            valid = where[at] if where.ndim < logits.ndim else where[at][c]
            if not valid:
                continue
            p = e[c] / e.sum() if activation == "softmax" else 1 / (1 + np.exp(-logits[at][c]))
            y = labels[at] == c if labels.ndim < logits.ndim else labels[at][c]
            result[(slice(None), *at[:-2], c)] += (p * y, p * (1 - y), (1 - p) * y, (p - y) ** 2, y, 1)
    return result


def loss_numpy(name, counts, smooth=0.0, squared=False, alpha=0.3, beta=0.7, gamma=4 / 3):
    """The formula as printed, with sums of probabilities and targets, per region."""
    tp, fp, fn, square, y, _ = counts
    if name == "tversky":
        return 1 - (tp + smooth) / (tp + alpha * fp + beta * fn + smooth)
    if name == "focal_tversky":
        return (1 - (tp + smooth) / (tp + alpha * fp + beta * fn + smooth)) ** (1 / gamma)
    p = square + 2 * tp - y if squared else tp + fp  # sum p^2 or sum p
    if name == "jaccard":
        return 1 - (tp + smooth) / (p + y - tp + smooth)
    loss = 1 - (2 * tp + smooth) / (p + y + smooth)
    return np.log(np.cosh(loss)) if name == "log_cosh_dice" else loss


def regions_numpy(counts, classes):
    """The regions that take part."""
    present, seen = counts[4] > 0, counts[5] > 0
    if isinstance(classes, str):
        return present if classes == "present" else seen
    return seen & np.isin(np.arange(seen.shape[-1]), classes)


@pytest.mark.parametrize(
    ("name", "options", "values"),
    [
        ("dice", {}, (1 - 2.4 / 3.5, 0.44)),
        ("dice", {"smooth": 1.0}, (1 - 3.4 / 4.5, 1 - 2.4 / 3.5)),
        ("dice", {"squared": True}, (1 - 2.4 / 2.89, 1 - 1.4 / 1.89)),
        ("jaccard", {}, (1 - 1.2 / 2.3, 1 - 0.7 / 1.8)),
        ("tversky", {}, (1 - 1.2 / 1.85, 1 - 0.608696)),
        ("focal_tversky", {}, ((1 - 1.2 / 1.85) ** 0.75, 0.494750)),
        ("log_cosh_dice", {}, (0.0485955, np.log(np.cosh(0.44)))),
        ("generalized_dice", {}, 0.407407),
        ("generalized_dice", {"weighting": "simple"}, 1 - 2 * (0.6 + 0.7) / (3.5 / 2 + 2.5)),
        ("generalized_dice", {"weighting": "uniform"}, 1 - 2 * 1.9 / 6),
    ],
)
def test_values_of_the_paper_pixels(name, options, values):
    # A fourth, void pixel changes nothing.
    logits = np.concatenate([LOGITS, np.full((1, 1, 2), 9, np.float32)], axis=1)
    labels = np.concatenate([LABELS, [[255]]], axis=1)
    loss = resolve("losses", name)(**options)
    np.testing.assert_allclose(loss(logits, labels, where=labels < 2), values, atol=1e-6)
    np.testing.assert_allclose(loss.mean(logits, labels, where=labels < 2), np.mean(values), atol=1e-6)


def test_identities():
    logits, labels, where = example()
    both = {"classes": "all", "where": where}
    half = tversky(logits, labels, alpha=0.5, beta=0.5, smooth=1.0, **both)
    np.testing.assert_allclose(half, dice(logits, labels, smooth=2.0, **both), rtol=1e-5)
    whole = tversky(logits, labels, alpha=1.0, beta=1.0, **both)
    np.testing.assert_allclose(whole, jaccard(logits, labels, **both), rtol=1e-6)
    d = dice(logits, labels, **both)
    np.testing.assert_allclose(whole, 2 * d / (1 + d), rtol=1e-5)
    one = focal_tversky(logits, labels, gamma=1.0, **both)
    np.testing.assert_allclose(one, tversky(logits, labels, **both), rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 5, 6), (2, 1, 4, 7), (4, 3)])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("squared", [False, True])
def test_counts_against_numpy(shape, activation, squared):
    logits, labels, where = example(shape=shape)
    expected = counts_numpy(logits, labels, where, activation)
    found = overlap_counts(logits, labels, where=where, activation=activation, squared=squared)
    error = expected[3] if squared else expected[1] + expected[2]
    for value, right in zip(found, [*expected[:3], error, *expected[4:]], strict=True):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, right, rtol=1e-5, atol=1e-6)
    pooled = overlap_counts(logits, labels, where=where, activation=activation, squared=squared, per_image=False)
    for value, images in zip(pooled, found, strict=True):
        np.testing.assert_allclose(value, images.reshape(-1, 4).sum(axis=0), rtol=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("classes", ["present", "all", (1, 3)])
@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_numpy_twin(name, classes, per_image, activation):
    logits, labels, where = example()
    counts = counts_numpy(logits, labels, where, activation)
    counts = counts if per_image else counts.sum(axis=1)
    options = {"smooth": 0.5} | ({"squared": True} if "dice" in name else {})
    part = regions_numpy(counts, classes)
    expected = np.where(part, loss_numpy(name, counts, **options), 0)
    loss = resolve("losses", name)(classes=classes, per_image=per_image, activation=activation, **options)
    values = loss(logits, labels, where=where)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(loss.counts(labels, where=where, num_classes=4), part)
    np.testing.assert_allclose(loss.mean(logits, labels, where=where), expected.sum() / part.sum(), rtol=1e-5)
    assert loss.whole_batch is not per_image


@pytest.mark.parametrize("weighting", ["square", "simple", "uniform"])
@pytest.mark.parametrize("absent_weight", ["one_pixel", "max"])
@pytest.mark.parametrize("classes", ["present", "all", (1, 3)])
@pytest.mark.parametrize("per_image", [True, False])
def test_generalized_dice_numpy_twin(weighting, absent_weight, classes, per_image):
    logits, labels, where = example()
    labels = np.where(labels == 3, 2, labels).astype(np.int32)  # class 3 is nowhere
    where[1] = False
    counts = counts_numpy(logits, labels, where)
    counts = counts.transpose(1, 0, 2) if per_image else counts.sum(axis=1)[None]
    expected, seen = [], []
    for tp, fp, fn, square, y, valid in counts:
        part = regions_numpy((tp, fp, fn, square, y, valid), classes)
        power = {"square": 2, "simple": 1, "uniform": 0}[weighting]
        present = [1 / y[c] ** power for c in range(4) if part[c] and y[c] > 0]
        above = below = 0.0
        for c in range(4):
            absent = max(present) if absent_weight == "max" and present else 1.0
            w = 0.0 if not part[c] else 1 / y[c] ** power if y[c] > 0 else absent
            above, below = above + 2 * w * tp[c], below + w * (2 * tp[c] + fp[c] + fn[c])
        seen.append(part.any())
        expected.append(1 - (above + 0.5) / (below + 0.5) if part.any() else 0)
    loss = resolve("losses", "generalized_dice")(
        weighting=weighting, absent_weight=absent_weight, classes=classes, per_image=per_image, smooth=0.5
    )
    expected, seen = (expected, seen) if per_image else (expected[0], seen[0])
    np.testing.assert_allclose(loss(logits, labels, where=where), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(loss.counts(labels, where=where, num_classes=4), seen)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", ["present", "all"])
@pytest.mark.parametrize("per_image", [True, False])
def test_multi_hot_targets_and_masks(name, classes, per_image):
    logits, targets, where = multi_hot_example()
    targets[0, ..., 2], where[1, ..., 1] = 0, False
    options = {"classes": classes, "per_image": per_image, "activation": "sigmoid", "smooth": 0.5}
    loss = resolve("losses", name)(multi_hot=True, **options)
    counts = counts_numpy(logits, targets, where, "sigmoid")
    counts = counts if per_image else counts.sum(axis=1)
    part = regions_numpy(counts, classes)
    if name == "generalized_dice":
        weights = np.where(part, 1 / np.maximum(counts[4], 1) ** 2, 0)
        above = (2 * weights * counts[0]).sum(-1) + 0.5
        expected = 1 - above / ((weights * (2 * counts[0] + counts[1] + counts[2])).sum(-1) + 0.5)
        part = part.any(-1)
    else:
        expected = np.where(part, loss_numpy(name, counts, smooth=0.5), 0)
    for form in (targets, targets.astype(bool), targets.astype(np.uint8)):
        np.testing.assert_allclose(loss(logits, form, where=where), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(loss.counts(form, where=where, num_classes=4), part)
    pixels = where.any(axis=-1)
    np.testing.assert_allclose(
        loss.mean(logits, targets, where=pixels),
        loss.mean(logits, targets, where=np.broadcast_to(pixels[..., None], logits.shape)),
        rtol=1e-6,
    )


def test_multi_hot_of_class_ids_is_the_same():
    logits, labels, where = example()
    hot = (labels[..., None] == np.arange(4)).astype(np.int32)
    ids, both = (resolve("losses", "dice")(activation="sigmoid", multi_hot=m) for m in (False, True))
    np.testing.assert_allclose(ids.mean(logits, labels, where=where), both.mean(logits, hot, where=where), rtol=1e-6)
    with pytest.raises(ValueError, match="multi_hot=True takes labels"):
        both(logits, labels, where=where)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_mask_equals_subset(name, activation):
    logits, labels, where = example()
    where[0] = True
    where[0, :, 4:] = False
    labels = np.where(labels == 255, 0, labels)
    loss = resolve("losses", name)(activation=activation)
    masked = loss(logits[:1], labels[:1], where=where[:1])
    np.testing.assert_allclose(masked, loss(logits[:1, :, :4], labels[:1, :, :4]), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_gradients(name, per_image, activation):
    logits, labels, where = example(shape=(2, 3, 3))
    options = {"squared": True} if name == "dice" else {}
    loss = resolve("losses", name)(per_image=per_image, activation=activation, classes="all", smooth=0.3, **options)
    weights = np.random.default_rng(1).random(np.shape(loss(logits, labels, where=where)))
    with jax.enable_x64(True):
        check_grads(
            lambda x: jnp.sum(loss(x, labels, where=where) * weights), (jnp.asarray(logits, jnp.float64),), 1, ["rev"]
        )


@pytest.mark.parametrize("name", NAMES)
def test_right_and_certain(name):
    """Where every probability is 0 or 1 and right, the loss is 0 with finite gradients."""
    labels = np.asarray([[[0, 1], [1, 2]]], np.int32)
    logits = jnp.asarray(1e4 * np.eye(3)[labels], jnp.float32)
    loss = resolve("losses", name)()
    value, gradient = jax.value_and_grad(lambda x: loss.mean(x, labels))(logits)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(logits))


def test_close_to_right_keeps_its_digits():
    """1 - Dice as a difference would be 0 in float32 here; 1 - p may be, which leaves half."""
    labels = np.zeros((1, 64, 64), np.int32)
    labels[:, ::2] = 1
    logits = 18.0 * np.eye(2)[labels].astype(np.float32)
    p = 1 / (1 + np.exp(18.0))
    found = dice(logits, labels)[0]
    assert np.all(found > 0.49 * p) and np.all(found < 1.01 * p)


def test_absent_class():
    """Under `all`: sum p / (sum p + s); without smooth the constant 1; with nothing predicted 0."""
    logits, labels = np.zeros((1, 2, 2, 2), np.float32), np.zeros((1, 2, 2), np.int32)
    np.testing.assert_allclose(dice(logits, labels, classes="all", smooth=1.0)[0, 1], 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(dice(logits, labels, classes="all")[0, 1], 1.0)
    assert dice(logits, labels)[0, 1] == 0
    certain = np.stack([np.full((1, 2, 2), 1e4, np.float32), np.full((1, 2, 2), -1e4, np.float32)], axis=-1)
    np.testing.assert_array_equal(dice(certain, labels, classes="all"), [[0.0, 0.0]])


def test_zero_over_zero():
    value, gradient = jax.value_and_grad(lambda e: error_ratio(e, jnp.zeros(())))(jnp.zeros(()))
    assert value == 0 and gradient == 0


def test_counts_count_past_float32():
    """Sizes are counted as integers: one running float32 sum of ones would stop at 2^24."""
    labels = np.zeros((1, 4097, 4096), np.uint8)
    counts = region_counts("present", per_image=True)(labels, num_classes=2)
    np.testing.assert_array_equal(counts, [[1, 0]])
    found = jax.jit(overlap_counts)(jnp.zeros((1, 4097, 4096, 1), jnp.float32), labels)
    assert int(found.true[0, 0]) == 4097 * 4096
    np.testing.assert_allclose(found.true_positive[0, 0], 4097 * 4096, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint32])
def test_label_types(dtype):
    logits, labels, where = example()
    labels = np.where(labels == 255, 100, labels)
    loss = resolve("losses", "dice")()
    value = loss.mean(logits, labels.astype(dtype), where=where)
    np.testing.assert_array_equal(value, loss.mean(logits, labels, where=where))


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("dice", {"smooth": -1.0}, "dice.smooth"),
        ("dice", {"smooth": float("nan")}, "dice.smooth"),
        ("dice", {"classes": "some"}, "present, all"),
        ("dice", {"classes": (1, 1)}, "once"),
        ("dice", {"classes": ()}, "once"),
        ("dice", {"classes": (-1,)}, "at least 0"),
        ("dice", {"activation": "relu"}, "softmax, sigmoid"),
        ("dice", {"multi_hot": True}, "needs activation"),
        ("jaccard", {"smooth": -1.0}, "jaccard.smooth"),
        ("log_cosh_dice", {"smooth": -1.0}, "log_cosh_dice.smooth"),
        ("tversky", {"alpha": -0.1}, "tversky.alpha"),
        ("tversky", {"beta": float("inf")}, "tversky.beta"),
        ("focal_tversky", {"gamma": 0}, "focal_tversky.gamma"),
        ("generalized_dice", {"weighting": "cube"}, "square, simple, uniform"),
        ("generalized_dice", {"absent_weight": "inf"}, "one_pixel, max"),
    ],
)
def test_bad_options(name, options, says):
    with pytest.raises(JaxsegError, match=says):
        resolve("losses", name)(**options)


def test_class_id_that_the_logits_do_not_have():
    logits, labels, where = example()
    with pytest.raises(ValueError, match=r"class 4 .* not in 0\.\.3"):
        dice(logits, labels, where=where, classes=(0, 4))


def test_no_rows_and_columns():
    with pytest.raises(ValueError, match="h, w"):
        dice(LOGITS[0], LABELS[0])


def test_generalized_dice_of_a_batch_is_that_of_its_images_below_each_other():
    logits, labels, where = example()
    value = generalized_dice(logits, labels, where=where, per_image=False)
    one = [x.reshape(1, -1, *x.shape[2:]) for x in (logits, labels, where)]
    alone = generalized_dice(one[0], one[1], where=one[2], per_image=True)
    assert value.shape == () and alone.shape == (1,)
    np.testing.assert_allclose(value, alone[0], rtol=1e-6)
