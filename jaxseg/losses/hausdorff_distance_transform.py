"""Hausdorff loss by distance transforms (Karimi & Salcudean 2019, arXiv 1904.10030)."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxseg.losses import options
from jaxseg.losses.class_maps import Classes, class_maps, each_class, map_loss, squared_distances
from jaxseg.losses.reduction import Loss


def build(
    *,
    alpha: float = 2.0,
    one_sided: bool = False,
    classes: Classes = "all",
    activation: str = "softmax",
    multi_hot: bool = False,
) -> Loss:
    """The loss `hausdorff_distance_transform` of a config: the mean over valid pixels and classes.

    Its size is that of squared distances; the paper adds it to Dice with a weight that makes both terms equal.

    Args:
      alpha: how strongly large errors count, at least 0.
      one_sided: only the truth's distances, which cost half as much (the paper's "OS").
      classes: `all`, or class ids, for example all but the background.
      activation: `softmax`, or `sigmoid` for classes that may overlap.
      multi_hot: labels are 0 and 1 `[*b, h, w, c]`, with `sigmoid`; otherwise class ids `[*b, h, w]`.

    Raises:
      JaxsegError: an option is out of its range.
    """
    name = "hausdorff_distance_transform"
    return map_loss(
        name,
        hausdorff_distance_transform,
        alpha=options.number(f"{name}.alpha", alpha),
        one_sided=bool(one_sided),
        classes=classes,
        activation=activation,
        multi_hot=multi_hot,
    )


def hausdorff_distance_transform(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    alpha: float = 2.0,
    one_sided: bool = False,
    classes: Classes = "all",
    activation: str = "softmax",
) -> jax.Array:
    """The squared error times powers of distances: `(p - y)^2 (D_p^alpha + D_y^alpha)`, per pixel and class.

    `D` is the distance of a pixel inside a mask to the nearest one outside and the other way round, of the mask p > 0.5
    and of the truth y; 0 everywhere where a mask is empty or holds every valid pixel. No gradient runs through `D`.

    Args:
      logits: float `[*b, h, w, c]`.
      labels: integers `[*b, h, w]`; class ids inside `where`, anything outside.
      where: bool `[*b, h, w]`, the pixels that count; None: all. Distances run to the nearest of these.
      alpha: the power, at least 0.
      one_sided: without `D_p^alpha`.
      classes: `all`, or k class ids.
      activation: `softmax` or `sigmoid`; with `sigmoid`, labels and `where` may be `[*b, h, w, c]`.

    Returns:
      float32 `[*b, h, w, k]`, 0 outside `where`. The row of labels (0, 0, 1) with p (.6, .6, .6) for class 1 has D_p 0,
      as every pixel is in the mask, D_y (2, 1, 1), and the values (1.44, .36, .16).

    Raises:
      TypeError, ValueError: see `checked_inputs`; an id that the logits do not have.

    Reference: arXiv 1904.10030, equation 8; one-sided: equation 9.
    """
    p, y, where = class_maps(logits, labels, where, classes, activation)

    def factor(p: jax.Array, y: jax.Array, where: jax.Array) -> jax.Array:
        masks = [y == 1] if one_sided else [y == 1, p > 0.5]
        # One of the two is 0: a pixel is inside or outside.
        squares = [inside + outside for inside, outside in squared_distances(masks, where)]
        powers = [jnp.where(s > 0, s.astype(jnp.float32) ** (alpha / 2), 0.0) for s in squares]
        return functools.reduce(jnp.add, powers)

    factors = each_class(factor, where, jax.lax.stop_gradient(p), y)
    return (p - y) ** 2 * jnp.where(where, factors, 0.0).astype(p.dtype)
