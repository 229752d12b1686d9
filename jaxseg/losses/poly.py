"""PolyLoss, its form Poly-1 (Leng et al., arXiv 2204.12511)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxseg.losses import options
from jaxseg.losses.cross_entropy import negative_log_likelihood
from jaxseg.losses.inputs import checked_class_weights, checked_inputs, of_label
from jaxseg.losses.modulation import checked_gamma, complement_power, modulated
from jaxseg.losses.reduction import Loss, pixel_counts, pixel_sums


def build(
    *,
    epsilon: float = 1.0,
    gamma: float = 0.0,
    class_weights: Sequence[float] | None = None,
    normalizer: str = "valid_pixels",
) -> Loss:
    """The loss `poly` of a config.

    Args:
      epsilon: weight of the first polynomial term, at least -1; 0 leaves cross-entropy or focal loss.
      gamma: at least 0; 0 builds on cross-entropy, anything else on focal loss.
      class_weights: one non-negative weight a class, or None.
      normalizer: what the sum is divided by, as in `cross_entropy`: `valid_pixels`, `class_weights`, `all_pixels`,
        `images`.

    Returns:
      A loss with one value per pixel, see `poly`.

    Raises:
      JaxsegError: an option is out of its range.
    """
    epsilon = options.number("poly.epsilon", epsilon, least=-1)
    gamma = options.number("poly.gamma", gamma)
    weights = options.weights("poly.class_weights", class_weights)

    def values(logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
        return poly(logits, labels, where=where, epsilon=epsilon, gamma=gamma, class_weights=weights)

    return Loss(values, pixel_counts(normalizer=normalizer, class_weights=weights), by_rows=pixel_sums(values))


def poly(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    epsilon: float = 1.0,
    gamma: float = 0.0,
    class_weights: ArrayLike | Sequence[float] | None = None,
) -> jax.Array:
    """Poly-1: cross-entropy or focal loss with another first coefficient in its series in `1 - p`.

    `w_y (-(1 - p_y)^gamma log p_y + epsilon (1 - p_y)^(gamma + 1))`, with the softmax probability `p_y`.

    Args:
      logits: float `[*b, h, w, c]`.
      labels: integers `[*b, h, w]`; class ids inside `where`, anything outside.
      where: bool `[*b, h, w]`, the pixels that count; None: all.
      epsilon: at least -1; below that the loss would fall as `p_y` falls near 1. The paper tunes it a task.
      gamma: at least 0; 0: Poly-1 cross-entropy, else Poly-1 focal loss.
      class_weights: c weights, finite and not negative, over both parts.

    Returns:
      float32 `[*b, h, w]`, 0 outside `where`. Logits (ln .8, ln .2) with label 0 give .22314 + .2 = .42314.

    Raises:
      TypeError, ValueError: as `cross_entropy`; epsilon or gamma is out of its range.

    Reference: Leng et al., arXiv 2204.12511, the formula of Poly-1, and of its focal form for detection.
    Differences from the paper: its focal form is over sigmoids of detection anchors; here it is over the softmax.
    """
    if not -1 <= epsilon < float("inf"):
        raise ValueError(f"epsilon = {epsilon} is not a finite number of at least -1")
    logits, labels, where = checked_inputs(logits, labels, where)
    weights = checked_class_weights(class_weights, logits.shape[-1], logits.dtype)
    likelihood = negative_log_likelihood(logits, labels, where)
    loss = modulated(likelihood, checked_gamma(gamma)) + epsilon * complement_power(likelihood, gamma + 1)
    return loss if weights is None else loss * of_label(weights, jnp.where(where, labels, 0))
