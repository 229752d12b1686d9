"""Boundary loss (Kervadec et al. 2019, arXiv 1812.07032)."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxseg.losses.class_maps import Classes, class_maps, each_class, map_loss, squared_distances
from jaxseg.losses.reduction import Loss


def build(
    *,
    classes: Classes = "all",
    normalized: bool = False,
    activation: str = "softmax",
    multi_hot: bool = False,
) -> Loss:
    """The loss `boundary` of a config: the mean of `boundary` over valid pixels and classes.

    Alone it is smallest at empty predictions as well; the paper adds it to a loss of regions and moves the weight from
    that to the boundary by 0.01 an epoch, from 1 to 0.01 ("rebalance"). With 100 steps an epoch:

        loss = {
            "generalized_dice": {
                "weight": {"start": 1.0, "end": 0.01, "duration_steps": 9900, "every_steps": 100},
            },
            "boundary": {
                "weight": {"start": 0.0, "end": 0.99, "duration_steps": 9900, "every_steps": 100},
            },
        }

    Args:
      classes: `all`, or class ids; the paper's binary tasks use the foreground alone, `(1,)`.
      normalized: distances in units of the diagonal of the image's valid part, for weights that suit any size.
      activation: `softmax`, or `sigmoid` for classes that may overlap.
      multi_hot: labels are 0 and 1 `[*b, h, w, c]`, with `sigmoid`; otherwise class ids `[*b, h, w]`.

    Raises:
      JaxsegError: an option is out of its range.
    """
    return map_loss(
        "boundary", boundary, classes=classes, normalized=bool(normalized), activation=activation, multi_hot=multi_hot
    )


def boundary(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    classes: Classes = "all",
    normalized: bool = False,
    activation: str = "softmax",
) -> jax.Array:
    """The probability times the signed distance to the outline of the truth: `p phi`, per pixel and class.

    `phi` is the distance to the nearest pixel of the class where the pixel is not of it, and minus (the distance to the
    nearest pixel of another class, less 1) where it is: 0 along both sides' seam inside, 1 outside. The loss can be
    negative; it is smallest where the prediction is the truth without its inner boundary or with it.

    Args:
      logits: float `[*b, h, w, c]`.
      labels: integers `[*b, h, w]`; class ids inside `where`, anything outside.
      where: bool `[*b, h, w]`, the pixels that count; None: all. Distances run to the nearest of these.
      classes: `all`, or k class ids.
      normalized: distances in units of the diagonal of the smallest box around the image's valid pixels.
      activation: `softmax` or `sigmoid`; with `sigmoid`, labels and `where` may be `[*b, h, w, c]`.

    Returns:
      float32 `[*b, h, w, k]`, 0 outside `where` and for a class without a pixel in the image. The row of labels
      (0, 0, 1, 1) has phi (2, 1, 0, -1) for class 1.

    Raises:
      TypeError, ValueError: see `checked_inputs`; an id that the logits do not have.

    Reference: arXiv 1812.07032, equations 5 and 6; `phi` as in the authors' code, which takes the pixels' centres.
    Differences: a class that covers a whole image has phi 0 (the code: what SciPy happens to give without background).
    """
    p, y, where = class_maps(logits, labels, where, classes, activation)
    phi = each_class(signed_distance, where, y)
    if normalized:
        phi = phi / _diagonal(where)
    return p * jax.lax.stop_gradient(phi).astype(p.dtype)


def signed_distance(target: jax.Array, where: jax.Array) -> jax.Array:
    """`phi` of one class: targets 0, 1 (or NaN, which stays) and mask `[*b, h, w]`; float32, 0 outside the mask."""
    mask = target == 1
    to_class, to_others = squared_distances([mask], where)[0]
    outline = jnp.any((to_class > 0) | (to_others > 0), axis=(-2, -1), keepdims=True)
    distance = jnp.sqrt(jnp.where(mask, to_others, to_class).astype(jnp.float32))
    phi = jnp.where(mask, 1 - distance, distance)
    return jnp.where(where & outline, phi, 0.0) + jnp.where(jnp.isnan(target), jnp.nan, 0.0).astype(jnp.float32)


def _diagonal(where: jax.Array) -> jax.Array:
    """Of the smallest box around each image's (and class's) valid pixels, `[*b, 1, 1, k or 1]`, at least 1."""

    def extent(axis: int, others: int) -> jax.Array:
        some = jnp.any(where, axis=others, keepdims=True)
        size = some.shape[axis]
        place = jax.lax.broadcasted_iota(jnp.int32, some.shape, some.ndim + axis)
        last = jnp.max(jnp.where(some, place, -1), axis=axis, keepdims=True)
        return last + 1 - jnp.min(jnp.where(some, place, size), axis=axis, keepdims=True)

    rows, columns = extent(-3, -2).astype(jnp.float32), extent(-2, -3).astype(jnp.float32)
    return jnp.maximum(jnp.sqrt(rows * rows + columns * columns), 1.0)
