"""Losses by blocks of rows: equal to those of the enlarged logits, in value and in the gradient by the coarse ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.coarse import CoarseLogits
from jaxseg.core.errors import JaxsegError
from jaxseg.core.names import known_names, resolve
from jaxseg.losses.composition import compose
from jaxseg.losses.reduction import Loss
from jaxseg.ops.resize import resize

CLASSES, SIZE = 4, (21, 18)
WEIGHTS = (0.5, 1.0, 2.0, 0.0)
BY_ROWS = {
    "cross_entropy": {"label_smoothing": 0.1, "class_weights": WEIGHTS, "normalizer": "class_weights"},
    "cross_entropy all_pixels": {"normalizer": "all_pixels"},
    "cross_entropy border": {"border_weight": {"w0": 3.0}, "class_weights": WEIGHTS, "normalizer": "images"},
    "focal": {"class_weights": WEIGHTS},
    "poly": {"epsilon": 0.5},
    "ohem_cross_entropy": {"min_kept": 150, "threshold": 0.2, "class_weights": WEIGHTS},
    "ohem_cross_entropy per_image": {"min_kept": 50, "threshold": 0.3, "per_image": True},
    "bootstrapped_cross_entropy": {"fraction": 0.3, "class_weights": WEIGHTS},
    "bootstrapped_cross_entropy per_image": {"pixels": 40, "per_image": True},
    "sigmoid_cross_entropy": {"label_smoothing": 0.1},
    "sigmoid_focal": {},
    "dice": {},
    "dice pooled": {"per_image": False, "squared": True, "smooth": 1.0, "classes": (1, 3)},
    "dice sigmoid": {"activation": "sigmoid", "classes": "all"},
    "jaccard": {"per_image": False},
    "tversky": {},
    "focal_tversky": {"per_image": False},
    "log_cosh_dice": {"squared": True},
    "generalized_dice": {"per_image": False, "smooth": 0.1},
}
QUICK = ("cross_entropy", "focal", "ohem_cross_entropy", "dice pooled", "dice sigmoid")
NOT_BY_ROWS = {
    "combo",
    "boundary",
    "hausdorff_convolution",
    "hausdorff_distance_transform",
    "hausdorff_erosion",
    "lovasz_hinge",
    "lovasz_softmax",
}


def example(coarse=(5, 4), seed=0):
    """Coarse logits, labels in blobs with void, and the second image all void but one row."""
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(2 * rng.normal(size=(3, *coarse, CLASSES)), jnp.float32)
    labels = rng.integers(0, CLASSES, (3, 7, 6)).repeat(3, axis=1).repeat(3, axis=2)[:, : SIZE[0], : SIZE[1]]
    where = rng.random(labels.shape) > 0.2
    where[1] = False
    where[1, 13] = True
    labels = np.where(where, labels, 255)
    return logits, jnp.asarray(labels, jnp.int32), jnp.asarray(where)


def both(terms, rows, alignment="half_pixel", coarse=(5, 4)):
    """(value, gradient) of the enlarged logits, and by rows."""
    loss = compose(terms)
    logits, labels, where = example(coarse)

    def plain(x):
        return loss(resize(x, SIZE, alignment=alignment), labels, where=where)[0]

    def by_rows(x):
        return loss.by_rows(CoarseLogits(x, alignment), labels, where=where, rows=rows)[0]

    return jax.jit(jax.value_and_grad(plain))(logits), jax.jit(jax.value_and_grad(by_rows))(logits)


def agree(expected, found):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    assert float(jnp.max(jnp.abs(expected[1]))) > 0
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-5 * float(jnp.max(jnp.abs(expected[1]))))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BY_ROWS]
)
def test_every_loss_by_rows(name):
    agree(*both({name.partition(" ")[0]: BY_ROWS[name]}, rows=8))


@pytest.mark.parametrize(
    ("rows", "alignment", "coarse"),
    [(1, "half_pixel", (5, 4)), (7, "align_corners", (3, 9)), (99, "half_pixel", SIZE)],
)
def test_several_terms_at_any_size(rows, alignment, coarse):
    terms = {"cross_entropy": 1.0, "ohem_cross_entropy": {"weight": 0.5, "min_kept": 100}, "dice": {"per_image": False}}
    agree(*both(terms, rows, alignment, coarse))


def test_every_loss_says_whether_it_has_rows():
    losses = {}
    for name in known_names("losses"):
        try:
            build = resolve("losses", name)
        except JaxsegError:
            continue
        losses[name] = build()
    assert {name for name, loss in losses.items() if isinstance(loss, Loss) and loss.by_rows is None} == NOT_BY_ROWS
    assert {name.partition(" ")[0] for name in BY_ROWS} >= set(losses) - NOT_BY_ROWS - {"ce"}


def test_terms_and_divisors_are_those_of_the_plain_path():
    loss = compose({"cross_entropy": 2.0, "dice": {"weight": 0.5}})
    logits, labels, where = example()
    divisors = {"cross_entropy": jnp.asarray(1000.0), "dice": jnp.asarray(7.0)}
    options = {"where": where, "divisors": divisors}
    total, terms = jax.jit(lambda x: loss.by_rows(CoarseLogits(x), labels, rows=6, **options))(logits)
    expected, shown = jax.jit(lambda x: loss(resize(x, SIZE, alignment="half_pixel"), labels, **options))(logits)
    assert set(terms) == {"cross_entropy", "dice"}
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(terms["dice"], shown["dice"], rtol=1e-5)
    np.testing.assert_allclose(total, 2 * terms["cross_entropy"] + 0.5 * terms["dice"], rtol=1e-6)


def test_all_void_is_zero_with_finite_gradients():
    logits, labels, where = example()
    loss = compose({"cross_entropy": 1.0, "ohem_cross_entropy": 1.0, "dice": 1.0})
    f = lambda x: loss.by_rows(CoarseLogits(x), labels, where=jnp.zeros_like(where), rows=8)[0]  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(f))(logits)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_a_label_that_is_no_class_is_seen():
    logits, labels, where = example()
    for name in ("cross_entropy", "ohem_cross_entropy", "dice"):
        wrong = labels.at[0, 9, 9].set(CLASSES)
        run = jax.jit(lambda x, y, name=name: compose({name: 1.0}).by_rows(CoarseLogits(x), y, where=y >= 0, rows=8)[0])
        assert np.isnan(run(logits, wrong)), name


def test_what_needs_all_logits_is_refused_with_its_name():
    loss = compose({"cross_entropy": 1.0, "lovasz_softmax": 1.0, "sigmoid_cross_entropy": {"multi_hot": True}})
    logits, labels, where = example()
    with pytest.raises(JaxsegError, match=r"loss_block_rows: config.loss.lovasz_softmax, config.loss.sigmoid_cross"):
        loss.by_rows(CoarseLogits(logits), labels, where=where, rows=8)
    with pytest.raises(ValueError, match="class_weights has the shape"):
        for name in ("ohem_cross_entropy", "bootstrapped_cross_entropy"):
            compose({name: {"class_weights": (1.0,)}}).by_rows(CoarseLogits(logits), labels, where=where, rows=8)
