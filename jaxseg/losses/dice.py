"""Soft Dice loss (V-Net, Milletari et al., arXiv 1606.04797)."""

import jax
from jax.typing import ArrayLike

from jaxseg.losses import options
from jaxseg.losses.overlap import (
    Classes,
    Overlap,
    error_ratio,
    overlap_counts,
    region_loss,
    region_values,
)
from jaxseg.losses.reduction import Loss


def build(
    *,
    smooth: float = 0.0,
    squared: bool = False,
    per_image: bool = True,
    classes: Classes = "present",
    activation: str = "softmax",
    multi_hot: bool = False,
) -> Loss:
    """The loss `dice` of a config: the mean of `dice` over the regions that `classes` names.

    Args:
      smooth: added to numerator and denominator, in pixels, at least 0.
      squared: V-Net's denominator, squares instead of probabilities.
      per_image: an image and class is a region; otherwise a class of the whole batch is.
      classes: which regions take part: `present`: those with a true pixel; `all`: those with a valid pixel; class ids:
        as `all`, of these classes, for example all but the background.
      activation: `softmax`, or `sigmoid` for classes that may overlap.
      multi_hot: labels are 0 and 1 `[*b, h, w, c]`, with `sigmoid`; otherwise class ids `[*b, h, w]`.

    Raises:
      JaxsegError: an option is out of its range.
    """
    smooth = options.number("dice.smooth", smooth)
    return region_loss(
        "dice",
        dice_of,
        smooth=smooth,
        squared=squared,
        classes=classes,
        per_image=per_image,
        activation=activation,
        multi_hot=multi_hot,
    )


def dice(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    smooth: float = 0.0,
    squared: bool = False,
    per_image: bool = True,
    classes: Classes = "present",
    activation: str = "softmax",
) -> jax.Array:
    """1 minus the soft Dice coefficient of each class.

    `1 - (2 sum p y + s) / (sum p + sum y + s)`, sums over the valid pixels of an image or of the batch; with `squared`
    the denominator is `sum p^2 + sum y^2 + s`.

    An absent class under `all` or class ids: its loss is `sum p / (sum p + s)`, which for s = 0 is the constant 1, so
    that only s > 0 gives it a gradient.

    Args:
      logits: float `[*b, h, w, c]`.
      labels: integers `[*b, h, w]`, class ids; with `sigmoid` also bool or 0 and 1 `[*b, h, w, c]`.
      where: bool `[*b, h, w]`, the pixels that count, with `sigmoid` also `[*b, h, w, c]`; None: all.
      smooth: `s`, in pixels, at least 0.
      squared: squares in the denominator.
      per_image: sums over each image, otherwise over the batch.
      classes: `present`, `all` or class ids, see `build`; the value of what takes no part is 0.
      activation: `softmax` or `sigmoid`.

    Returns:
      float32 `[*b, c]`, or `[c]` where not `per_image`, each in [0, 1]. Three pixels with p = (.8, .2), (.4, .6),
      (.3, .7) and labels 0, 0, 1 give .314286 and .44.

    Raises:
      TypeError: labels are not integers, `where` is not bool, or logits are not floats.
      ValueError: shapes do not fit each other, a class id is out of range, and, outside of jit, a label that is no
        class id or probabilities in place of logits.

    Reference: Milletari et al., arXiv 1606.04797, section 3 (`squared`); the plain denominator is Drozdzal et al.,
    arXiv 1608.04117, equation 2.
    Differences: V-Net's formula has no `smooth`.
    """
    overlap = overlap_counts(logits, labels, where=where, activation=activation, per_image=per_image, squared=squared)
    return dice_of(overlap, classes=classes, smooth=smooth)


def dice_of(overlap: Overlap, *, classes: Classes, smooth: float) -> jax.Array:
    """`dice` of soft counts."""
    return region_values(error_ratio(overlap.error, 2 * overlap.true_positive, smooth), overlap, classes)
