"""Sigmoid cross-entropy: one binary decision a pixel and class, for classes that may overlap."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxseg.core.errors import JaxsegError
from jaxseg.losses import options
from jaxseg.losses.inputs import checked_class_weights, checked_multilabel_inputs
from jaxseg.losses.multilabel import binary_log_likelihood, check_target_form, log_losses, multilabel_counts
from jaxseg.losses.reduction import Loss, pixel_sums


def build(
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    pos_weight: float | Sequence[float] | None = None,
    normalizer: str = "valid_entries",
    multi_hot: bool = False,
) -> Loss:
    """The loss `sigmoid_cross_entropy` of a config.

    Args:
      label_smoothing: moves targets from 0 and 1 to e / 2 and 1 - e / 2, in [0, 1).
      class_weights: one non-negative weight a class, or None.
      pos_weight: factor of the targets that are 1: one, or one a class; or None.
      normalizer: what the sum over pixels and classes is divided by: `valid_entries` pairs of pixel and class
        (PyTorch's mean), `valid_pixels`, `class_weights` of the pairs, `all_pixels`, `images`, `positives` (pairs that
        are 1).
      multi_hot: labels are 0 and 1 `[*b, h, w, c]`; otherwise class ids `[*b, h, w]`.

    Returns:
      A loss with one value per pixel and class, see `sigmoid_cross_entropy`.

    Raises:
      JaxsegError: an option is out of its range.
    """
    name = "sigmoid_cross_entropy"
    if not 0 <= label_smoothing < 1:
        raise JaxsegError(f"config.loss.{name}.label_smoothing = {label_smoothing} is not in [0, 1).")
    weights = options.weights(f"{name}.class_weights", class_weights)
    positive: float | tuple[float, ...] | None
    if isinstance(pos_weight, int | float):
        positive = options.number(f"{name}.pos_weight", pos_weight)
    else:
        positive = options.weights(f"{name}.pos_weight", pos_weight)

    def values(logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
        result = sigmoid_cross_entropy(
            logits, labels, where=where, label_smoothing=label_smoothing, class_weights=weights, pos_weight=positive
        )
        check_target_form(logits, labels, multi_hot=multi_hot)
        return result

    counts = multilabel_counts(normalizer=normalizer, class_weights=weights, multi_hot=multi_hot, loss=name)
    return Loss(values, counts, by_rows=None if multi_hot else pixel_sums(values))


def sigmoid_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    class_weights: ArrayLike | Sequence[float] | None = None,
    pos_weight: ArrayLike | Sequence[float] | None = None,
) -> jax.Array:
    """Minus the log of the sigmoid probability of each pixel's decision on each class.

    `w_c (-v_c t log s(x) - (1 - t) log(1 - s(x)))`, with `t = (1 - e) y + e / 2`, targets `y` of 0 or 1, smoothing `e`,
    class weights `w`, positive weights `v`, and the sigmoid `s`.

    Args:
      logits: float `[*b, h, w, c]`.
      labels: integers `[*b, h, w]`, class ids that become one-hot; or 0 and 1, integers or bool, `[*b, h, w, c]`.
      where: bool `[*b, h, w]` or `[*b, h, w, c]`, what counts; None: everything.
      label_smoothing: `e`, in [0, 1).
      class_weights: c weights, finite and not negative.
      pos_weight: one factor, or c factors, finite and not negative, of the targets that are 1.

    Returns:
      float32 `[*b, h, w, c]`, 0 outside `where`. Logits (0, ln 3) with label 1 give (ln 2, ln 4/3) = (.69315, .28768).

    Raises:
      TypeError: labels are floats, `where` is not bool, or logits are not floats.
      ValueError: shapes do not fit each other, and, outside of jit, labels that are no class ids or no 0 and 1, or a
        negative weight.

    Reference: the formula is PyTorch's BCEWithLogitsLoss; the smoothing is Keras' BinaryCrossentropy. Differences:
    segmentation_models_pytorch's SoftBCEWithLogitsLoss moves targets by its smooth_factor instead of half of it.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing = {label_smoothing} is not in [0, 1)")
    logits, targets, where = checked_multilabel_inputs(logits, labels, where)
    classes = logits.shape[-1]
    weights = checked_class_weights(class_weights, classes, logits.dtype)
    if pos_weight is not None:
        every = jnp.asarray(pos_weight, logits.dtype)
        every = every if every.ndim else jnp.broadcast_to(every, classes)
        pos_weight = checked_class_weights(every, classes, logits.dtype, name="pos_weight")
    clean, targets = jnp.where(where, logits, 0.0), jnp.where(where, targets, 0.0)
    if pos_weight is None and not label_smoothing:
        loss = binary_log_likelihood(clean, targets)
    else:
        positive, negative = log_losses(clean)
        targets = (1 - label_smoothing) * targets + label_smoothing / 2
        loss = targets * (positive if pos_weight is None else positive * pos_weight) + (1 - targets) * negative
    loss = loss if weights is None else loss * weights
    return jnp.where(where, loss, 0.0)
