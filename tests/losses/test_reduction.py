"""Sums and counts: a batch split in any way gives the same number, and no count stops at 2^24."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.losses.reduction import NORMALIZERS, Loss, divide, image_counts, pixel_counts

LABELS = np.asarray([[[0, 1, 2], [1, 1, 9]], [[9, 9, 9], [9, 9, 9]]], np.int32)
WHERE = LABELS < 9


def summed(logits, labels, *, where=None):
    return jnp.where(where, jnp.sum(logits, axis=-1), 0.0)


def test_the_mean_is_the_sum_over_the_divisor():
    loss = Loss(summed, pixel_counts())
    logits = np.arange(2 * 2 * 3 * 3, dtype=np.float32).reshape(2, 2, 3, 3)
    values = np.where(WHERE, logits.sum(-1), 0)
    np.testing.assert_array_equal(loss(logits, LABELS, where=WHERE), values)
    assert float(loss.divisor(LABELS, where=WHERE, num_classes=3)) == 5
    assert float(loss.mean(logits, LABELS, where=WHERE)) == values.sum() / 5


@pytest.mark.parametrize(
    ("normalizer", "by_image"),
    [("valid_pixels", [5, 0]), ("class_weights", [0.5 + 3 * 2 + 4, 0]), ("all_pixels", [6, 6]), ("images", [1, 1])],
)
def test_counts_by_hand(normalizer, by_image):
    counts = pixel_counts(normalizer=normalizer, class_weights=(0.5, 2.0, 4.0))
    found = counts(LABELS, where=WHERE, num_classes=3)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, by_image)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_counts_of_parts_add_up_under_jit(normalizer):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (5, 4, 6)).astype(np.int32)
    where = rng.random(labels.shape) < 0.6
    counts = jax.jit(
        lambda y, w: pixel_counts(normalizer=normalizer, class_weights=(0.5, 2.0, 4.0))(y, where=w, num_classes=3)
    )
    whole = np.sum(counts(labels, where))
    parts = [np.sum(counts(labels[p], where[p])) for p in (slice(0, 1), slice(1, 4), slice(4, 5))]
    assert sum(parts) == whole


@pytest.mark.parametrize("normalizer", ["valid_pixels", "all_pixels"])
def test_counts_pass_2_to_the_24(normalizer):
    # A float32 that is counted up by ones stops at 16777216; this many is the next that float32 holds.
    where = np.ones((1, 4096, 4097), bool)
    counts = jax.jit(
        lambda w: pixel_counts(normalizer=normalizer)(jnp.zeros(w.shape, jnp.int32), where=w, num_classes=2)
    )
    assert float(np.sum(counts(where))) == 4096 * 4097 > 1 << 24


def test_no_mask_is_every_pixel():
    assert float(np.sum(pixel_counts()(LABELS, num_classes=10))) == 12
    np.testing.assert_array_equal(image_counts(LABELS, num_classes=10), [1, 1])


def test_pixels_without_an_image():
    labels = np.zeros(7, np.int32)
    for normalizer, expected in (("valid_pixels", 7), ("all_pixels", 7), ("images", 1)):
        assert float(np.sum(pixel_counts(normalizer=normalizer)(labels, num_classes=2))) == expected


def test_images_with_a_valid_pixel():
    np.testing.assert_array_equal(image_counts(LABELS, where=WHERE, num_classes=3), [1, 0])


def test_nothing_counted_is_zero_with_zero_gradients():
    value, gradient = jax.value_and_grad(lambda t, d: divide(t, d), argnums=(0, 1))(jnp.float32(3), jnp.float32(0))
    assert float(value) == 0 and [float(g) for g in gradient] == [0, 0]
    assert float(divide(jnp.float32(3), jnp.float32(2))) == 1.5


@pytest.mark.parametrize(
    ("options", "says"),
    [({"normalizer": "mean"}, "valid_pixels, class_weights, all"), ({"normalizer": "class_weights"}, "needs class_w")],
)
def test_bad_options(options, says):
    with pytest.raises(JaxsegError, match=says):
        pixel_counts(**options)
