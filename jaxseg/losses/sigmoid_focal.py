"""Focal loss in its original sigmoid form (Lin et al., arXiv 1708.02002)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxseg.losses import options
from jaxseg.losses.inputs import checked_class_weights, checked_multilabel_inputs
from jaxseg.losses.modulation import checked_gamma, modulated
from jaxseg.losses.multilabel import binary_log_likelihood, check_target_form, multilabel_counts
from jaxseg.losses.reduction import Loss, pixel_sums


def build(
    *,
    gamma: float = 2.0,
    alpha: float | None = 0.25,
    class_weights: Sequence[float] | None = None,
    normalizer: str = "valid_entries",
    multi_hot: bool = False,
) -> Loss:
    """The loss `sigmoid_focal` of a config.

    Args:
      gamma: at least 0; 0 is weighted sigmoid cross-entropy.
      alpha: weight of targets that are 1, in [0, 1]; those that are 0 have 1 - alpha. None: no weights.
      class_weights: one non-negative weight a class, on top of alpha; or None.
      normalizer: what the sum over pixels and classes is divided by: `valid_entries` pairs of pixel and class,
        `valid_pixels`, `class_weights` of the pairs, `all_pixels`, `images`, `positives`: pairs whose target is 1, at
        least 1 an image (the paper, RetinaNet).
      multi_hot: labels are 0 and 1 `[*b, h, w, c]`; otherwise class ids `[*b, h, w]`.

    Returns:
      A loss with one value per pixel and class, see `sigmoid_focal`.

    Raises:
      JaxsegError: an option is out of its range.
    """
    name = "sigmoid_focal"
    gamma = options.number(f"{name}.gamma", gamma)
    alpha = None if alpha is None else options.number(f"{name}.alpha", alpha, most=1)
    weights = options.weights(f"{name}.class_weights", class_weights)

    def values(logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
        result = sigmoid_focal(logits, labels, where=where, gamma=gamma, alpha=alpha, class_weights=weights)
        check_target_form(logits, labels, multi_hot=multi_hot)
        return result

    counts = multilabel_counts(normalizer=normalizer, class_weights=weights, multi_hot=multi_hot, loss=name)
    return Loss(values, counts, by_rows=None if multi_hot else pixel_sums(values))


def sigmoid_focal(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    gamma: float = 2.0,
    alpha: float | None = 0.25,
    class_weights: ArrayLike | Sequence[float] | None = None,
) -> jax.Array:
    """Sigmoid cross-entropy that counts decisions the less the clearer they are already.

    `-a_t (1 - p_t)^gamma log p_t`, with `p_t = s(x)` and `a_t = alpha` where the target is 1, else `1 - s(x)` and
    `1 - alpha`.

    Computed in float32 from `log p_t`, without an epsilon: exact where `p_t` is near 0 or 1, for any gamma >= 0.

    Args:
      logits: float `[*b, h, w, c]`.
      labels: integers `[*b, h, w]`, class ids that become one-hot; or 0 and 1, integers or bool, `[*b, h, w, c]`.
      where: bool `[*b, h, w]` or `[*b, h, w, c]`, what counts; None: everything.
      gamma: the focusing parameter, at least 0.
      alpha: in [0, 1]; None: 1 for both.
      class_weights: c weights, finite and not negative.

    Returns:
      float32 `[*b, h, w, c]`, 0 outside `where`. Logit 0, target 1: .25 * .5^2 * ln 2 = .043322; target 0: .129965.

    Raises:
      TypeError, ValueError: as `sigmoid_cross_entropy`; gamma or alpha is out of its range.

    Reference: Lin et al., arXiv 1708.02002, equation 5 and section 4.1 (normalised by the positives).
    """
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha = {alpha} is not in [0, 1]")
    logits, targets, where = checked_multilabel_inputs(logits, labels, where)
    weights = checked_class_weights(class_weights, logits.shape[-1], logits.dtype)
    clean, targets = jnp.where(where, logits, 0.0), jnp.where(where, targets, 0.0)
    loss = modulated(binary_log_likelihood(clean, targets), checked_gamma(gamma))
    if alpha is not None:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    loss = loss if weights is None else loss * weights
    return jnp.where(where, loss, 0.0)
