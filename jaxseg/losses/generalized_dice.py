"""Generalised Dice loss (Sudre et al., arXiv 1707.03237)."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxseg.losses import options
from jaxseg.losses.overlap import (
    Classes,
    Overlap,
    error_ratio,
    overlap_counts,
    region_loss,
    region_mask,
)
from jaxseg.losses.reduction import Loss

WEIGHTING = {"square": -2.0, "simple": -1.0, "uniform": 0.0}
ABSENT = ("one_pixel", "max")


def build(
    *,
    weighting: str = "square",
    absent_weight: str = "one_pixel",
    smooth: float = 0.0,
    per_image: bool = True,
    classes: Classes = "present",
    activation: str = "softmax",
    multi_hot: bool = False,
) -> Loss:
    """The loss `generalized_dice` of a config: the mean of `generalized_dice` over images.

    Args:
      weighting: a class of n true pixels weighs `square`: 1 / n^2; `simple`: 1 / n; `uniform`: 1.
      absent_weight: what an absent class weighs under `classes` = all or ids: `one_pixel`: as if it had one pixel;
        `max`: as the heaviest class that is present (MONAI, NiftyNet).
      smooth: added to numerator and denominator, at least 0. Mind the weights: a class of 1000 pixels weighs 1e-6.
      per_image: a value for each image; otherwise one for the batch.
      classes: which classes take part: `present`: those with a true pixel; `all`: those with a valid pixel; class ids:
        as `all`, of these classes, for example all but the background.
      activation: `softmax`, or `sigmoid` for classes that may overlap.
      multi_hot: labels are 0 and 1 `[*b, h, w, c]`, with `sigmoid`; otherwise class ids `[*b, h, w]`.

    Raises:
      JaxsegError: an option is out of its range.
    """
    options.choice("generalized_dice.weighting", weighting, WEIGHTING)
    options.choice("generalized_dice.absent_weight", absent_weight, ABSENT)
    smooth = options.number("generalized_dice.smooth", smooth)
    loss = region_loss(
        "generalized_dice",
        generalized_dice_of,
        weighting=weighting,
        absent_weight=absent_weight,
        smooth=smooth,
        classes=classes,
        per_image=per_image,
        activation=activation,
        multi_hot=multi_hot,
    )

    def counts(labels: ArrayLike, *, where: ArrayLike | None = None, num_classes: int) -> jax.Array:
        return jnp.max(loss.counts(labels, where=where, num_classes=num_classes), axis=-1)

    return dataclasses.replace(loss, counts=counts)


def generalized_dice(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weighting: str = "square",
    absent_weight: str = "one_pixel",
    smooth: float = 0.0,
    per_image: bool = True,
    classes: Classes = "present",
    activation: str = "softmax",
) -> jax.Array:
    """1 minus the Dice coefficient of all classes together, each weighted by the inverse of its size.

    `1 - (2 sum_c w_c sum p y + s) / (sum_c w_c (sum p + sum y) + s)`, `w_c = 1 / (sum y)^2`; inner sums over the valid
    pixels of an image or of the batch.

    Args:
      logits: float `[*b, h, w, c]`.
      labels: integers `[*b, h, w]`, class ids; with `sigmoid` also bool or 0 and 1 `[*b, h, w, c]`.
      where: bool `[*b, h, w]`, the pixels that count, with `sigmoid` also `[*b, h, w, c]`; None: all.
      weighting: `square`, `simple` or `uniform`, see `build`.
      absent_weight: `one_pixel` or `max`, see `build`.
      smooth: `s`, at least 0.
      per_image: sums over each image, otherwise over the batch.
      classes: `present`, `all` or class ids, see `build`.
      activation: `softmax` or `sigmoid`.

    Returns:
      float32 `[*b]`, or `[]` where not `per_image`, each in [0, 1]; 0 where no class takes part. Three pixels with
      p = (.8, .2), (.4, .6), (.3, .7) and labels 0, 0, 1 give .407407.

    Raises:
      TypeError: labels are not integers, `where` is not bool, or logits are not floats.
      ValueError: shapes do not fit each other, a class id is out of range, and, outside of jit, a label that is no
        class id or probabilities in place of logits.

    Reference: Sudre et al., arXiv 1707.03237, section 2.1.
    Differences: the paper divides by 0 for an absent class. A tiny number added to `sum y`, as some code has it, would
    let absent classes outweigh everything else, hence `classes` and `absent_weight`.
    """
    overlap = overlap_counts(logits, labels, where=where, activation=activation, per_image=per_image)
    return generalized_dice_of(
        overlap, classes=classes, weighting=weighting, absent_weight=absent_weight, smooth=smooth
    )


def generalized_dice_of(
    overlap: Overlap, *, classes: Classes, weighting: str, absent_weight: str, smooth: float
) -> jax.Array:
    """`generalized_dice` of soft counts."""
    weights = _weights(overlap, classes, weighting, absent_weight)
    error = jnp.sum(weights * overlap.error, axis=-1)
    agreement = jnp.sum(weights * 2 * overlap.true_positive, axis=-1)
    return jnp.where(jnp.any(region_mask(overlap, classes), axis=-1), error_ratio(error, agreement, smooth), 0.0)


def _weights(overlap: Overlap, classes: Classes, weighting: str, absent_weight: str) -> jax.Array:
    takes_part, absent = region_mask(overlap, classes), overlap.true == 0
    weights = jnp.maximum(overlap.true, 1.0) ** WEIGHTING[weighting]
    if absent_weight == "max":
        heaviest = jnp.max(jnp.where(takes_part & ~absent, weights, 0.0), axis=-1, keepdims=True)
        weights = jnp.where(absent & (heaviest > 0), heaviest, weights)
    return jnp.where(takes_part, weights, 0.0)
