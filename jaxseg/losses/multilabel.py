"""What the sigmoid (multi-label) losses share: stable terms, and what their sums are divided by."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxseg.core.errors import JaxsegError
from jaxseg.losses.reduction import NORMALIZERS, Counts

MULTILABEL_NORMALIZERS = ("valid_entries", *NORMALIZERS, "positives")


def log_losses(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`-log sigmoid(x)` and `-log (1 - sigmoid(x))`, each exact where it is tiny, with one exponential for both."""
    both = jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return both + jnp.maximum(-logits, 0), both + jnp.maximum(logits, 0)


def binary_log_likelihood(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """`-log` of the probability of a target of 0 or 1, NaN for a target that is NaN."""
    return jax.nn.softplus((1 - 2 * targets) * logits)


def check_target_form(logits: ArrayLike, labels: ArrayLike, *, multi_hot: bool) -> None:
    """Raises where the labels are class ids but `multi_hot` is set, or the other way round.

    Raises:
      ValueError: say so; the counts would be wrong.
    """
    if (jnp.ndim(labels) == jnp.ndim(logits)) != multi_hot:
        form = "[*b, h, w, c], 0 and 1 for each class" if multi_hot else "[*b, h, w], class ids"
        raise ValueError(f"multi_hot={multi_hot} takes labels {form}; these are {jnp.shape(labels)}")


def multilabel_counts(
    *,
    normalizer: str = "valid_entries",
    class_weights: Sequence[float] | None = None,
    multi_hot: bool = False,
    loss: str = "sigmoid_cross_entropy",
) -> Counts:
    """What a loss with a value a pixel and class is divided by.

    Args:
      normalizer: `valid_entries`: pairs of pixel and class in `where` (PyTorch's mean); `valid_pixels`: pixels with a
        class in `where`; `class_weights`: the weights of the pairs' classes; `all_pixels`: pixels, void too; `images`;
        `positives`: pairs whose target is 1, at least 1 an image with a valid pixel (RetinaNet).
      class_weights: weights for `class_weights`.
      multi_hot: labels are `[*b, h, w, c]`; otherwise class ids `[*b, h, w]`.
      loss: named in messages.

    Returns:
      `(labels, *, where, num_classes) -> float32`, of any shape.

    Raises:
      JaxsegError: an unknown normalizer, or one without its weights.
    """
    if normalizer not in MULTILABEL_NORMALIZERS:
        known = ", ".join(MULTILABEL_NORMALIZERS)
        raise JaxsegError(f"config.loss.{loss}.normalizer = {normalizer!r} is not one of {known}.")
    if normalizer == "class_weights" and class_weights is None:
        raise JaxsegError(f"config.loss.{loss}.normalizer = 'class_weights' needs class_weights.")

    def counts(labels: ArrayLike, *, where: ArrayLike | None = None, num_classes: int) -> jax.Array:
        labels = jnp.asarray(labels)
        pixels = labels.shape[:-1] if multi_hot else labels.shape
        where = jnp.ones(pixels, bool) if where is None else jnp.asarray(where)
        by_class = where if where.ndim > len(pixels) else where[..., None]
        inside = tuple(range(max(0, len(pixels) - 2), len(pixels)))
        # Integers an image (and class): float32 would stop counting at 2^24.
        if normalizer == "valid_pixels":
            return jnp.sum(jnp.any(by_class, axis=-1), axis=inside, dtype=jnp.int32).astype(jnp.float32)
        if normalizer in ("all_pixels", "images"):
            size = pixels[-2] * pixels[-1] if len(pixels) > 1 else pixels[0] if pixels else 1
            return jnp.full(pixels[:-2], size if normalizer == "all_pixels" else 1, jnp.float32)
        wide = jnp.broadcast_to(by_class, (*pixels, num_classes))
        if normalizer == "positives":
            hot = labels == 1 if multi_hot else labels[..., None] == jnp.arange(num_classes, dtype=labels.dtype)
            positives = jnp.sum(wide & hot, axis=(*inside, len(pixels)), dtype=jnp.int32)
            valid = jnp.any(wide, axis=(*inside, len(pixels)))
            return jnp.where(valid, jnp.maximum(positives, 1), 0).astype(jnp.float32)
        entries = jnp.sum(wide, axis=inside, dtype=jnp.int32).astype(jnp.float32)
        return entries if normalizer == "valid_entries" else entries * jnp.asarray(class_weights, jnp.float32)

    return counts
