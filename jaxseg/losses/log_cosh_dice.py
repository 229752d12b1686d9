"""Log-cosh Dice loss (Jadon, arXiv 2006.14822)."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxseg.losses import options
from jaxseg.losses.dice import dice_of
from jaxseg.losses.overlap import Classes, Overlap, overlap_counts, region_loss
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
    """The loss `log_cosh_dice` of a config: the mean of `log_cosh_dice` over the regions that `classes` names.

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
    smooth = options.number("log_cosh_dice.smooth", smooth)
    return region_loss(
        "log_cosh_dice",
        log_cosh_dice_of,
        smooth=smooth,
        squared=squared,
        classes=classes,
        per_image=per_image,
        activation=activation,
        multi_hot=multi_hot,
    )


def log_cosh_dice(
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
    """The logarithm of the hyperbolic cosine of the Dice loss of each class.

    `log cosh(D)`, `D` as in `dice`: its slope `tanh(D)` falls to 0 as the prediction becomes right.

    An absent class: see `dice`.

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
      float32 `[*b, c]`, or `[c]` where not `per_image`, each in [0, .434]. Three pixels with p = (.8, .2), (.4, .6),
      (.3, .7) and labels 0, 0, 1 give .048596 and .093829.

    Raises:
      TypeError: labels are not integers, `where` is not bool, or logits are not floats.
      ValueError: shapes do not fit each other, a class id is out of range, and, outside of jit, a label that is no
        class id or probabilities in place of logits.

    Reference: Jadon, arXiv 2006.14822, equation 19 and table III.
    Differences: the paper takes one region and smooth = 1.
    """
    overlap = overlap_counts(logits, labels, where=where, activation=activation, per_image=per_image, squared=squared)
    return log_cosh_dice_of(overlap, classes=classes, smooth=smooth)


def log_cosh_dice_of(overlap: Overlap, *, classes: Classes, smooth: float) -> jax.Array:
    """`log_cosh_dice` of soft counts."""
    return jnp.log(jnp.cosh(dice_of(overlap, classes=classes, smooth=smooth)))  # 0 where a region takes no part
