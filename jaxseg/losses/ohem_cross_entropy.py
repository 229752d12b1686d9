"""Online hard example mining by a probability threshold, as the PSPNet and HRNet code bases have it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxseg.core.errors import JaxsegError
from jaxseg.losses import options
from jaxseg.losses.cross_entropy import negative_log_likelihood
from jaxseg.losses.inputs import checked_class_weights, checked_inputs, of_label
from jaxseg.losses.reduction import Loss, weighted_pixel_sums
from jaxseg.ops.selection import top_k_share


def build(
    *,
    threshold: float = 0.7,
    min_kept: int = 100_000,
    per_image: bool = False,
    class_weights: Sequence[float] | None = None,
) -> Loss:
    """The loss `ohem_cross_entropy` of a config: the mean over the pixels that are kept.

    How many are kept depends on the logits, so that by default the logits of the whole batch must be there first.

    Args:
      threshold: pixels whose true class has a lower probability are kept, in (0, 1].
      min_kept: at least so many are kept, at least 1; of the batch, or of each image where `per_image`.
      per_image: the mean over images of each one's mean over kept pixels.
      class_weights: one non-negative weight a class, or None.

    Returns:
      A loss with one value per pixel, see `ohem_cross_entropy`.

    Raises:
      JaxsegError: an option is out of its range.
    """
    name = "ohem_cross_entropy"
    threshold = options.number(f"{name}.threshold", threshold, most=1)
    if threshold == 0:
        raise JaxsegError(f"config.loss.{name}.threshold = 0 keeps nothing; it takes a number in (0, 1].")
    min_kept = options.whole_number(f"{name}.min_kept", min_kept, least=1)
    weights = options.weights(f"{name}.class_weights", class_weights)

    def values(logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
        return ohem_cross_entropy(
            logits,
            labels,
            where=where,
            threshold=threshold,
            min_kept=min_kept,
            per_image=per_image,
            class_weights=weights,
        )

    def counts(labels: ArrayLike, *, where: ArrayLike | None = None, num_classes: int) -> jax.Array:
        valid = jnp.ones(jnp.shape(labels), bool) if where is None else jnp.asarray(where)
        return jnp.any(valid, axis=_axes(valid.ndim, per_image)).astype(jnp.float32)

    def likelihoods(logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
        checked_class_weights(weights, jnp.shape(logits)[-1], jnp.dtype(jnp.float32))
        return negative_log_likelihood(*checked_inputs(logits, labels, where))

    def shares(pixels: jax.Array, labels: jax.Array, where: jax.Array) -> jax.Array:
        kept, number = _kept(pixels, where, threshold, min_kept, _axes(pixels.ndim, per_image))
        share = jnp.where(kept, 1 / number, 0.0)
        return share if weights is None else share * jnp.asarray(weights, share.dtype)[jnp.where(where, labels, 0)]

    by_rows = weighted_pixel_sums(likelihoods, shares, selects=True)
    return Loss(values, counts, whole_batch=not per_image, by_rows=by_rows)


def ohem_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    threshold: float = 0.7,
    min_kept: int = 100_000,
    per_image: bool = False,
    class_weights: ArrayLike | Sequence[float] | None = None,
) -> jax.Array:
    """Each pixel's share of the mean cross-entropy over the hard pixels.

    `w_y (-log p_y) / K` for the K pixels that are kept, 0 for the others, so that the sum is the loss. Kept are the
    pixels with `p_y < threshold`, and the `min_kept` with the lowest `p_y` (with all that equal the last of them).

    Args:
      logits: float `[*b, h, w, c]`.
      labels: integers `[*b, h, w]`; class ids inside `where`, anything outside.
      where: bool `[*b, h, w]`, the pixels that count; None: all.
      threshold: in (0, 1].
      min_kept: at least 1; where there are fewer valid pixels, all are kept.
      per_image: pixels are picked, and K is counted, image by image; otherwise over the batch.
      class_weights: c weights, finite and not negative; they change neither what is kept nor K.

    Returns:
      float32 `[*b, h, w]`; its sum is the loss of the batch, or with `per_image` of each image. Probabilities .9, .6,
      .8 with min_kept=2 keep .6 and .8: (0, .25541, .11157).

    Raises:
      TypeError, ValueError: as `cross_entropy`; threshold or min_kept is out of its range.

    Reference: Shrivastava et al., arXiv 1604.03540 (mining), in the form of the PSPNet, CCNet and HRNet code, defaults
    included. Differences: that code picks on each device, over the images that happen to lie there; here it is over
    the batch.
    """
    if not 0 < threshold <= 1 or min_kept < 1:
        raise ValueError(f"threshold = {threshold} is not in (0, 1], or min_kept = {min_kept} is not at least 1")
    logits, labels, where = checked_inputs(logits, labels, where)
    weights = checked_class_weights(class_weights, logits.shape[-1], logits.dtype)
    loss = negative_log_likelihood(logits, labels, where)
    kept, number = _kept(loss, where, threshold, min_kept, _axes(loss.ndim, per_image))
    share = jnp.where(kept, loss / number, 0.0)
    return share if weights is None else share * of_label(weights, jnp.where(where, labels, 0))


def _kept(
    loss: jax.Array, where: jax.Array, threshold: float, min_kept: int, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Which pixels are kept, and how many (at least 1, of the loss's type, with 1 for each of `axes`)."""
    least = jnp.full(
        [1 if axis in axes else n for axis, n in enumerate(loss.shape)], min(min_kept, 2**31 - 1), jnp.int32
    )
    hardest = top_k_share(loss, least, where=where, axes=axes) > 0
    easy = loss <= -float(np.log(threshold))  # False for the NaN of an unknown label, which has to be seen
    kept = where & (hardest | ~easy)
    number = jnp.sum(kept, axis=axes, keepdims=True, dtype=jnp.int32)
    return kept, jnp.maximum(number, 1).astype(loss.dtype)


def _axes(ndim: int, per_image: bool) -> tuple[int, ...]:
    return tuple(range(max(0, ndim - 2) if per_image else 0, ndim))
