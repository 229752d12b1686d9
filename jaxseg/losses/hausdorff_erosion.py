"""Hausdorff loss by erosions (Karimi & Salcudean 2019, arXiv 1904.10030)."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxseg.losses import options
from jaxseg.losses.class_maps import Classes, class_maps, each_class, map_loss
from jaxseg.losses.reduction import Loss

CROSS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))


def build(
    *,
    alpha: float = 2.0,
    erosions: int = 10,
    classes: Classes = "all",
    activation: str = "softmax",
    multi_hot: bool = False,
) -> Loss:
    """The loss `hausdorff_erosion` of a config: the mean over valid pixels and classes.

    Args:
      alpha: how strongly errors count that outlast many erosions, at least 0.
      erosions: how many; at least 1.
      classes: `all`, or class ids, for example all but the background.
      activation: `softmax`, or `sigmoid` for classes that may overlap.
      multi_hot: labels are 0 and 1 `[*b, h, w, c]`, with `sigmoid`; otherwise class ids `[*b, h, w]`.

    Raises:
      JaxsegError: an option is out of its range.
    """
    name = "hausdorff_erosion"
    return map_loss(
        name,
        hausdorff_erosion,
        alpha=options.number(f"{name}.alpha", alpha),
        erosions=options.whole_number(f"{name}.erosions", erosions, least=1),
        classes=classes,
        activation=activation,
        multi_hot=multi_hot,
    )


def hausdorff_erosion(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    alpha: float = 2.0,
    erosions: int = 10,
    classes: Classes = "all",
    activation: str = "softmax",
) -> jax.Array:
    """What is left of the squared error after k soft erosions, times `k^alpha`, summed over k; per pixel and class.

    `b_0 = (p - y)^2`; `b_k` is `relu(B * b_(k-1) - 0.5)`, brought to [0, 1] by the smallest and largest value in the
    image where these differ; `B` is a cross of 5 pixels of weight 0.2. The result is `sum over k of k^alpha b_k`.

    Args:
      logits: float `[*b, h, w, c]`.
      labels: integers `[*b, h, w]`; class ids inside `where`, anything outside.
      where: bool `[*b, h, w]`, the pixels that count; None: all. Others, and what is beyond the image, are 0.
      alpha: the power, at least 0.
      erosions: how many k.
      classes: `all`, or k class ids.
      activation: `softmax` or `sigmoid`; with `sigmoid`, labels and `where` may be `[*b, h, w, c]`.

    Returns:
      float32 `[*b, h, w, k]`, 0 outside `where`. 3 x 3 pixels that are all wrong with certainty have `b_1`
      ((1, 3, 1), (3, 5, 3), (1, 3, 1)) * 0.1, brought to ((0, .5, 0), (.5, 1, .5), (0, .5, 0)), then b_2 0.1 at the
      centre, brought to 1, then 0: the values are ((0, .5, 0), (.5, 5, .5), (0, .5, 0)).

    Raises:
      TypeError, ValueError: see `checked_inputs`; an id that the logits do not have.

    Reference: arXiv 1904.10030, equation 11; the normalisation is that of its public implementations.
    """
    p, y, where = class_maps(logits, labels, where, classes, activation)

    def one(p: jax.Array, y: jax.Array, where: jax.Array) -> jax.Array:
        def step(carry: tuple[jax.Array, jax.Array], weight: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            left, total = carry
            left = _erode(left, where)
            return (left, total + weight * left), None

        weights = jnp.arange(1, erosions + 1, dtype=p.dtype) ** alpha
        error = (p - y) ** 2
        return lax.scan(step, (error, jnp.zeros_like(error)), weights)[0][1]

    return each_class(one, where, p, y)


def _erode(left: jax.Array, where: jax.Array) -> jax.Array:
    """One soft erosion, `[*b, h, w]`, 0 outside the mask before and after."""
    h, w = left.shape[-2:]
    padded = jnp.pad(left, [(0, 0)] * (left.ndim - 2) + [(1, 1), (1, 1)])
    cross = [padded[..., 1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w] for dy, dx in CROSS]
    left = jnp.where(where, jnp.maximum(functools.reduce(jnp.add, cross) * 0.2 - 0.5, 0.0), 0.0)
    top = jnp.max(left, axis=(-2, -1), keepdims=True)  # outside the mask are zeros, of which nothing is below
    bottom = jnp.min(jnp.where(where, left, jnp.inf), axis=(-2, -1), keepdims=True)
    bottom = jnp.where(jnp.isfinite(bottom), bottom, top)
    differ = top != bottom
    scaled = (left - bottom) / jnp.where(differ, top - bottom, 1.0)
    return jnp.where(where, jnp.where(differ, scaled, left), 0.0)
