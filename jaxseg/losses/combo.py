"""Combo loss: weighted cross-entropy minus Dice (Taghanaki et al., arXiv 1805.02798)."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxseg.losses import options
from jaxseg.losses.inputs import checked_inputs, checked_multilabel_inputs, image_axes, one_hot
from jaxseg.losses.multilabel import log_losses
from jaxseg.losses.overlap import (
    Classes,
    checked_region_options,
    overlap_counts,
    region_counts,
    region_values,
)
from jaxseg.losses.reduction import Loss


def build(
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    smooth: float = 1.0,
    activation: str = "softmax",
    per_image: bool = True,
    classes: Classes = "all",
) -> Loss:
    """The loss `combo` of a config.

    Args:
      alpha: share of the cross-entropy, in [0, 1]; the rest is Dice's.
      beta: share of false negatives in the cross-entropy, in [0, 1]; above 0.5 a missed pixel costs more than a false
        one. The paper tries 0.4 to 0.6.
      smooth: added to numerator and denominator of Dice, at least 0.
      activation: `softmax` or `sigmoid`.
      per_image: Dice over each image; otherwise over the batch, for which all logits must be there.
      classes: `all`, `present` (those in the ground truth of the image or batch), or a list of class ids.

    Returns:
      A loss with one value per image and class, or per class, see `combo`. It may be negative.

    Raises:
      JaxsegError: an option is out of its range.
    """
    alpha = options.number("combo.alpha", alpha, most=1)
    beta = options.number("combo.beta", beta, most=1)
    classes = checked_region_options("combo", classes, activation, smooth=smooth)

    def values(logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
        return combo(
            logits,
            labels,
            where=where,
            alpha=alpha,
            beta=beta,
            smooth=smooth,
            activation=activation,
            per_image=per_image,
            classes=classes,
        )

    return Loss(values, region_counts(classes, per_image=per_image), whole_batch=not per_image)


def combo(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    alpha: float = 0.5,
    beta: float = 0.5,
    smooth: float = 1.0,
    activation: str = "softmax",
    per_image: bool = True,
    classes: Classes = "all",
) -> jax.Array:
    """Cross-entropy that weighs misses against false alarms, minus Dice, for each class.

    `alpha / N sum(-beta y log p - (1 - beta) (1 - y) log(1 - p)) - (1 - alpha) (2 sum p y + s) / (sum p + sum y + s)`,
    sums over the N valid pixels of an image, or of the batch.

    Args:
      logits: float `[*b, h, w, c]`; softmax needs two classes or more.
      labels: integers `[*b, h, w]`, class ids; with `sigmoid` also bool or 0 and 1 `[*b, h, w, c]`.
      where: bool `[*b, h, w]`, with `sigmoid` also `[*b, h, w, c]`; None: every pixel.
      alpha: in [0, 1].
      beta: in [0, 1].
      smooth: `s`, at least 0; where it is 0, a class without pixels and without probability has a Dice of 1.
      activation: `softmax` or `sigmoid`.
      per_image: sums over each image; otherwise over the batch.
      classes: `all`, `present` or class ids; the value of a class that takes no part is 0.

    Returns:
      float32 `[*b, c]` or `[c]`. Logits (ln .8, ln .2), (ln .4, ln .6), (ln .3, ln .7) with labels 0, 0, 1 and s = 0:
      .5 * .249352 - .5 * .56 = -.155324 for class 1, as its log losses are halved by beta.

    Raises:
      TypeError, ValueError: as `overlap_counts`; softmax with one class.

    Reference: Taghanaki et al., arXiv 1805.02798, section II. Differences: the printed equation has `t - log p` where
    its text and code mean `t log p`; the mean is over classes and images after the sums over pixels.
    """
    if activation == "softmax":
        logits, labels, where = checked_inputs(logits, labels, where)
        if logits.shape[-1] < 2:
            raise ValueError("softmax over one class is 1 everywhere; use activation='sigmoid'")
        targets = one_hot(labels, where, logits.shape[-1], logits.dtype)
        valid = where[..., None]
        miss, alarm = _softmax_log_losses(jnp.where(valid, logits, 0.0))
    else:
        clean, targets, valid = checked_multilabel_inputs(logits, labels, where)
        miss, alarm = log_losses(jnp.where(valid, clean, 0.0))
    entropy = jnp.where(valid, beta * targets * miss + (1 - beta) * (1 - targets) * alarm, 0.0)
    total = jnp.sum(entropy, axis=image_axes(entropy.shape, per_image=per_image))
    overlap = overlap_counts(logits, labels, where=where, activation=activation, per_image=per_image)
    mean = total / jnp.maximum(overlap.valid, 1)
    agreement = 2 * overlap.true_positive
    size = agreement + overlap.error + smooth
    dice = jnp.where(size == 0, 1.0, (agreement + smooth) / jnp.where(size == 0, 1.0, size))
    return region_values(alpha * mean - (1 - alpha) * dice, overlap, classes)


def _softmax_log_losses(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`-log p` and `-log (1 - p)` of the softmax, both finite for finite logits.

    `1 - p` rounds to 0 for a class that is certain; for the largest class its log is that of the others' sum.
    """
    log_p = jax.nn.log_softmax(logits, axis=-1)
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    largest = classes == jax.lax.argmax(logits, logits.ndim - 1, jnp.int32)[..., None]
    others = jax.nn.logsumexp(jnp.where(largest, -jnp.inf, log_p), axis=-1, keepdims=True)
    log_rest = jnp.where(largest, others, jnp.log1p(-jnp.exp(jnp.where(largest, -1.0, log_p))))
    return -log_p, -log_rest
