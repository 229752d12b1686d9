"""The one place that sums and counts, so that a batch split in any way gives the same number."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxseg.core.errors import JaxsegError
from jaxseg.losses.inputs import of_label

NORMALIZERS = ("valid_pixels", "class_weights", "all_pixels", "images")
Counts = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class ByRows:
    """How a loss comes from sums over pixels, so that an image can be worked through in blocks of rows.

    `sum(Loss.values(logits, labels))` is `sum(values(sum over blocks of sums(block)))`. No function holds a traced
    array but its arguments.

    Attributes:
      sums: `(logits [*b, r, w, c], labels [*b, r, w], where, weights) -> pytree of float arrays`, each image's own
        (`[*b, ...]`), so that devices need not talk for each block; `weights` are the block's from `weights`, or None.
      values: `(sums) -> float array` of any shape, its sum is the loss's.
      pixels: `(logits, labels, where) -> [*b, r, w]`: what `weights` has to know of every pixel before the sums; None:
        nothing.
      weights: `(pixels [*b, h, w] or None, labels, where) -> [*b, h, w]`: of the whole batch, without gradient; None:
        there are none.
    """

    sums: Callable[..., Any]
    values: Callable[[Any], jax.Array] = lambda sums: sums
    pixels: Callable[..., jax.Array] | None = None
    weights: Callable[..., jax.Array] | None = None


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss of a config, before its reduction; its number is `sum(values) / sum(counts)`, 0 where nothing counts.

    Attributes:
      values: `(logits [*b, h, w, c], labels, *, where) -> float32 [*r]`: a value a pixel `[*b, h, w]`, or a region:
        an image and class `[*b, c]`, an image `[*b]`. What does not count is 0.
      counts: `(labels, *, where, num_classes) -> float32`, of any shape: what the values' sum is divided by. It comes
        from the labels alone, so that the divisor of a whole batch is known before its first part is computed.
      whole_batch: the value of one image depends on the others (pooled Dice, a common threshold), so that parts of a
        batch do not add up. The train step then computes all logits before the loss.
      by_rows: how its values come from sums over pixels; None where they do not (a sort, distances).
    """

    values: Callable[..., jax.Array]
    counts: Counts
    whole_batch: bool = False
    by_rows: ByRows | None = None

    def __call__(self, logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
        """The values, unreduced."""
        return self.values(logits, labels, where=where)

    def divisor(self, labels: ArrayLike, *, where: ArrayLike | None = None, num_classes: int) -> jax.Array:
        """The sum of the counts, a float32 scalar."""
        return jnp.sum(self.counts(labels, where=where, num_classes=num_classes))

    def mean(self, logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
        """The loss as one scalar."""
        classes = jnp.asarray(logits).shape[-1]
        divisor = self.divisor(labels, where=where, num_classes=classes)
        return divide(jnp.sum(self(logits, labels, where=where)), divisor)


def pixel_sums(values: Callable[..., jax.Array]) -> ByRows:
    """The form of a loss whose values stand for themselves: `values(logits, labels, *, where)`, one or c a pixel."""

    def sums(logits: jax.Array, labels: jax.Array, where: jax.Array, weights: None) -> jax.Array:
        del weights
        return image_sums(values(logits, labels, where=where), where)

    return ByRows(sums)


def weighted_pixel_sums(
    values: Callable[..., jax.Array], weights: Callable[..., jax.Array], *, selects: bool = False
) -> ByRows:
    """The form of a loss that is a sum of pixels' values times weights that no gradient runs through.

    Args:
      values: `(logits, labels, *, where) -> [*b, r, w]`.
      weights: as `ByRows.weights`; with `selects`, of all pixels' values, otherwise of None.
      selects: the weights depend on the values, which then are computed twice.
    """

    def sums(logits: jax.Array, labels: jax.Array, where: jax.Array, weights: jax.Array) -> jax.Array:
        found = values(logits, labels, where=where)
        return image_sums(found * weights.astype(found.dtype), where)

    def pixels(logits: jax.Array, labels: jax.Array, where: jax.Array) -> jax.Array:
        return values(logits, labels, where=where)

    return ByRows(sums, pixels=pixels if selects else None, weights=weights)


def image_sums(values: jax.Array, where: jax.Array) -> jax.Array:
    """`[*b, h, w, ...] -> [*b]`, `where` being `[*b, h, w]`."""
    return jnp.sum(values, axis=tuple(range(where.ndim - 2, values.ndim)))


def divide(total: jax.Array, divisor: jax.Array) -> jax.Array:
    """`total / divisor`, and 0 with zero gradients where nothing counts (`divisor` is 0)."""
    counted = divisor > 0
    return jnp.where(counted, total / jnp.where(counted, divisor, 1).astype(total.dtype), jnp.zeros((), total.dtype))


def pixel_counts(*, normalizer: str = "valid_pixels", class_weights: Sequence[float] | None = None) -> Counts:
    """What a loss with a value a pixel is divided by.

    Args:
      normalizer: `valid_pixels`: pixels in `where` (Caffe, SegNet); `class_weights`: the weights of their classes
        (PyTorch); `all_pixels`: void counts too, so that images weigh the same whatever is void in them; `images`:
        images, which leaves the sum over pixels (the published FCN and U-Net).
      class_weights: weights for `class_weights`.

    Returns:
      `(labels [*b, h, w] or, for multi-label losses, [*b, h, w, c], *, where, num_classes) -> float32 [images]`.

    Raises:
      JaxsegError: an unknown normalizer, or one without its weights.
    """
    if normalizer not in NORMALIZERS:
        raise JaxsegError(f"normalizer = {normalizer!r} is not one of {', '.join(NORMALIZERS)}.")
    if normalizer == "class_weights" and class_weights is None:
        raise JaxsegError("normalizer = 'class_weights' needs class_weights.")

    def counts(labels: ArrayLike, *, where: ArrayLike | None = None, num_classes: int) -> jax.Array:
        labels = jnp.asarray(labels)
        where = jnp.ones(labels.shape, bool) if where is None else jnp.asarray(where)
        inside = tuple(range(max(0, where.ndim - 2), where.ndim))
        if normalizer == "class_weights":
            weights = jnp.asarray(class_weights, jnp.float32)
            per_pixel = jnp.where(where, of_label(weights, jnp.where(where, labels, 0)), 0.0)
            return jnp.sum(per_pixel, axis=inside)
        if normalizer == "valid_pixels":
            # Integers an image: float32 would stop counting at 2^24.
            return jnp.sum(where, axis=inside, dtype=jnp.int32).astype(jnp.float32)
        size = where.shape[-2] * where.shape[-1] if where.ndim > 1 else where.size
        return jnp.full(where.shape[:-2], size if normalizer == "all_pixels" else 1, jnp.float32)

    return counts


def image_counts(labels: ArrayLike, *, where: ArrayLike | None = None, num_classes: int) -> jax.Array:
    """1 for each image with a valid pixel, float32 `[*b]`."""
    labels = jnp.asarray(labels)
    where = jnp.ones(labels.shape, bool) if where is None else jnp.asarray(where)
    return jnp.any(where, axis=(-2, -1)).astype(jnp.float32)
