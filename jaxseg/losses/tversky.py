"""Tversky loss (Salehi et al., arXiv 1706.05721)."""

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
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 0.0,
    per_image: bool = True,
    classes: Classes = "present",
    activation: str = "softmax",
    multi_hot: bool = False,
) -> Loss:
    """The loss `tversky` of a config: the mean of `tversky` over the regions that `classes` names.

    Args:
      alpha: weight of false positives, at least 0.
      beta: weight of false negatives, at least 0.
      smooth: added to numerator and denominator, in pixels, at least 0.
      per_image: an image and class is a region; otherwise a class of the whole batch is.
      classes: which regions take part: `present`: those with a true pixel; `all`: those with a valid pixel; class ids:
        as `all`, of these classes, for example all but the background.
      activation: `softmax`, or `sigmoid` for classes that may overlap.
      multi_hot: labels are 0 and 1 `[*b, h, w, c]`, with `sigmoid`; otherwise class ids `[*b, h, w]`.

    Raises:
      JaxsegError: an option is out of its range.
    """
    alpha = options.number("tversky.alpha", alpha)
    beta = options.number("tversky.beta", beta)
    smooth = options.number("tversky.smooth", smooth)
    return region_loss(
        "tversky",
        tversky_of,
        alpha=alpha,
        beta=beta,
        smooth=smooth,
        classes=classes,
        per_image=per_image,
        activation=activation,
        multi_hot=multi_hot,
    )


def tversky(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 0.0,
    per_image: bool = True,
    classes: Classes = "present",
    activation: str = "softmax",
) -> jax.Array:
    """1 minus the soft Tversky index of each class.

    `1 - TI`, `TI = (TP + s) / (TP + a FP + b FN + s)`, `TP = sum p y`, `FP = sum p (1 - y)`, `FN = sum (1 - p) y`, sums
    over the valid pixels of an image or of the batch. `a = b = .5` is Dice with `2 s`, `a = b = 1` is Jaccard.

    An absent class under `all` or class ids: `TI = s / (a sum p + s)`, which for s = 0 is the constant 0, so that only
    s > 0 gives it a gradient.

    Args:
      logits: float `[*b, h, w, c]`.
      labels: integers `[*b, h, w]`, class ids; with `sigmoid` also bool or 0 and 1 `[*b, h, w, c]`.
      where: bool `[*b, h, w]`, the pixels that count, with `sigmoid` also `[*b, h, w, c]`; None: all.
      alpha: `a`, at least 0.
      beta: `b`, at least 0.
      smooth: `s`, in pixels, at least 0.
      per_image: sums over each image, otherwise over the batch.
      classes: `present`, `all` or class ids, see `build`; the value of what takes no part is 0.
      activation: `softmax` or `sigmoid`.

    Returns:
      float32 `[*b, c]`, or `[c]` where not `per_image`, each in [0, 1]. Three pixels with p = (.8, .2), (.4, .6),
      (.3, .7) and labels 0, 0, 1 give .351351 and .391304.

    Raises:
      TypeError: labels are not integers, `where` is not bool, or logits are not floats.
      ValueError: shapes do not fit each other, a class id is out of range, and, outside of jit, a label that is no
        class id or probabilities in place of logits.

    Reference: Salehi et al., arXiv 1706.05721, equation 2.
    Differences: the paper states a = .3, b = .7 for its best run; some papers swap the symbols, and here `alpha`
    belongs to the false positives. The paper has no `smooth`.
    """
    overlap = overlap_counts(logits, labels, where=where, activation=activation, per_image=per_image)
    return tversky_of(overlap, classes=classes, alpha=alpha, beta=beta, smooth=smooth)


def tversky_of(overlap: Overlap, *, classes: Classes, alpha: float, beta: float, smooth: float) -> jax.Array:
    """`tversky` of soft counts."""
    error = alpha * overlap.false_positive + beta * overlap.false_negative
    return region_values(error_ratio(error, overlap.true_positive, smooth), overlap, classes)
