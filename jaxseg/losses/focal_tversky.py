"""Focal Tversky loss (Abraham and Khan, arXiv 1810.07842)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxseg.core.errors import JaxsegError
from jaxseg.losses import options
from jaxseg.losses.overlap import Classes, Overlap, overlap_counts, region_loss
from jaxseg.losses.reduction import Loss
from jaxseg.losses.tversky import tversky_of


def build(
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 4 / 3,
    smooth: float = 0.0,
    per_image: bool = True,
    classes: Classes = "present",
    activation: str = "softmax",
    multi_hot: bool = False,
) -> Loss:
    """The loss `focal_tversky` of a config: the mean of `focal_tversky` over the regions that `classes` names.

    Args:
      alpha: weight of false positives, at least 0.
      beta: weight of false negatives, at least 0.
      gamma: the exponent is 1 / gamma, above 0.
      smooth: added to numerator and denominator, in pixels, at least 0.
      per_image: an image and class is a region; otherwise a class of the whole batch is.
      classes: which regions take part: `present`: those with a true pixel; `all`: those with a valid pixel; class ids:
        as `all`, of these classes, for example all but the background.
      activation: `softmax`, or `sigmoid` for classes that may overlap.
      multi_hot: labels are 0 and 1 `[*b, h, w, c]`, with `sigmoid`; otherwise class ids `[*b, h, w]`.

    Raises:
      JaxsegError: an option is out of its range.
    """
    alpha = options.number("focal_tversky.alpha", alpha)
    beta = options.number("focal_tversky.beta", beta)
    gamma = options.number("focal_tversky.gamma", gamma)
    if gamma == 0:
        raise JaxsegError("config.loss.focal_tversky.gamma = 0 is not above 0.")
    smooth = options.number("focal_tversky.smooth", smooth)
    return region_loss(
        "focal_tversky",
        focal_tversky_of,
        alpha=alpha,
        beta=beta,
        gamma=gamma,
        smooth=smooth,
        classes=classes,
        per_image=per_image,
        activation=activation,
        multi_hot=multi_hot,
    )


def focal_tversky(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 4 / 3,
    smooth: float = 0.0,
    per_image: bool = True,
    classes: Classes = "present",
    activation: str = "softmax",
) -> jax.Array:
    """A power of 1 minus the soft Tversky index of each class.

    `(1 - TI)^(1 / gamma)`, `TI` as in `tversky`. At `TI = 1`, where the power's slope has no bound, the gradient is 0.

    An absent class under `all` or class ids: `TI = s / (a sum p + s)`, which for s = 0 is the constant 0, so that only
    s > 0 gives it a gradient.

    Args:
      logits: float `[*b, h, w, c]`.
      labels: integers `[*b, h, w]`, class ids; with `sigmoid` also bool or 0 and 1 `[*b, h, w, c]`.
      where: bool `[*b, h, w]`, the pixels that count, with `sigmoid` also `[*b, h, w, c]`; None: all.
      alpha: `a`, at least 0.
      beta: `b`, at least 0.
      gamma: above 0; more than 1 raises the loss of regions that are nearly right.
      smooth: `s`, in pixels, at least 0.
      per_image: sums over each image, otherwise over the batch.
      classes: `present`, `all` or class ids, see `build`; the value of what takes no part is 0.
      activation: `softmax` or `sigmoid`.

    Returns:
      float32 `[*b, c]`, or `[c]` where not `per_image`, each in [0, 1]. Three pixels with p = (.8, .2), (.4, .6),
      (.3, .7) and labels 0, 0, 1 give .456359 and .494750.

    Raises:
      TypeError: labels are not integers, `where` is not bool, or logits are not floats.
      ValueError: shapes do not fit each other, a class id is out of range, and, outside of jit, a label that is no
        class id or probabilities in place of logits.

    Reference: Abraham and Khan, arXiv 1810.07842, equation 4.
    Differences: their equation 3 gives alpha = .7 to the false negatives, which here is `beta`; it has no `smooth`.
    """
    overlap = overlap_counts(logits, labels, where=where, activation=activation, per_image=per_image)
    return focal_tversky_of(overlap, classes=classes, alpha=alpha, beta=beta, gamma=gamma, smooth=smooth)


def focal_tversky_of(overlap: Overlap, *, gamma: float, **tversky_options: Any) -> jax.Array:
    """`focal_tversky` of soft counts; the other options are `tversky_of`'s."""
    loss = tversky_of(overlap, **tversky_options)
    right = loss == 0  # masked before the power, whose slope there is infinite; so is what takes no part
    return jnp.where(right, 0.0, jnp.where(right, 1.0, loss) ** (1 / gamma))
