"""Focal loss in its softmax form (Lin et al., arXiv 1708.02002)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxseg.losses import options
from jaxseg.losses.cross_entropy import negative_log_likelihood
from jaxseg.losses.inputs import checked_class_weights, checked_inputs, of_label
from jaxseg.losses.modulation import checked_gamma, modulated
from jaxseg.losses.reduction import Loss, pixel_counts, pixel_sums


def build(
    *, gamma: float = 2.0, class_weights: Sequence[float] | None = None, normalizer: str = "valid_pixels"
) -> Loss:
    """The loss `focal` of a config.

    Args:
      gamma: at least 0; 0 is cross-entropy.
      class_weights: one non-negative weight a class, the paper's alpha; or None.
      normalizer: what the sum is divided by, as in `cross_entropy`: `valid_pixels`, `class_weights`, `all_pixels`,
        `images`.

    Returns:
      A loss with one value per pixel, see `focal`.

    Raises:
      JaxsegError: an option is out of its range.
    """
    gamma = options.number("focal.gamma", gamma)
    weights = options.weights("focal.class_weights", class_weights)

    def values(logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
        return focal(logits, labels, where=where, gamma=gamma, class_weights=weights)

    return Loss(values, pixel_counts(normalizer=normalizer, class_weights=weights), by_rows=pixel_sums(values))


def focal(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    gamma: float = 2.0,
    class_weights: ArrayLike | Sequence[float] | None = None,
) -> jax.Array:
    """Cross-entropy that counts pixels the less the better they are classified already.

    `-w_y (1 - p_y)^gamma log p_y` with the softmax probability `p_y` of the true class.

    Computed in float32 from `log p`, without an epsilon: exact where p is near 0 or 1, for any gamma >= 0.

    Args:
      logits: float `[*b, h, w, c]`.
      labels: integers `[*b, h, w]`; class ids inside `where`, anything outside.
      where: bool `[*b, h, w]`, the pixels that count; None: all.
      gamma: the focusing parameter, at least 0.
      class_weights: c weights, finite and not negative; the paper's alpha.

    Returns:
      float32 `[*b, h, w]`, 0 outside `where`. Logits (ln .8, ln .2), label 0, gamma 2 give .2^2 * .22314 = .0089257.

    Raises:
      TypeError, ValueError: as `cross_entropy`; gamma is negative.

    Reference: Lin et al., arXiv 1708.02002, equations 4 and 5, with softmax in place of the sigmoid.
    Differences from the paper: it weighs with alpha and normalises by the number of positives, see `sigmoid_focal`;
    for softmax no weights and the mean over pixels are usual.
    """
    logits, labels, where = checked_inputs(logits, labels, where)
    weights = checked_class_weights(class_weights, logits.shape[-1], logits.dtype)
    loss = modulated(negative_log_likelihood(logits, labels, where), checked_gamma(gamma))
    return loss if weights is None else loss * of_label(weights, jnp.where(where, labels, 0))
