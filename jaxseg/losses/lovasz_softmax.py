"""Lovasz-softmax loss (Berman et al., arXiv 1705.08790)."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxseg.losses import options
from jaxseg.losses.inputs import checked_inputs, image_axes
from jaxseg.losses.lovasz import class_losses, takes_part
from jaxseg.losses.overlap import Classes, checked_region_options, region_counts
from jaxseg.losses.reduction import Loss


def build(*, per_image: bool = False, classes: Classes = "present", bins: int | None = None) -> Loss:
    """The loss `lovasz_softmax` of a config: the mean of `lovasz_softmax` over the regions that `classes` names.

    Args:
      per_image: an image and class is a region; otherwise a class of the whole batch is.
      classes: which regions take part: `present`: those with a true pixel; `all`: those with a valid pixel; class ids:
        as `all`, of these classes.
      bins: at least 2: errors are rounded to so many levels and counted instead of sorted, which on a CPU is several
        times as fast and changes the loss by at most 1 / (bins - 1), usually far less; None: exact.

    Raises:
      JaxsegError: an option is out of its range.
    """
    classes = checked_region_options("lovasz_softmax", classes)
    if bins is not None:
        options.whole_number("lovasz_softmax.bins", bins, least=2)
    values = functools.partial(lovasz_softmax, per_image=per_image, classes=classes, bins=bins)
    return Loss(values, region_counts(classes, per_image=per_image), whole_batch=not per_image)


def lovasz_softmax(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    per_image: bool = False,
    classes: Classes = "present",
    bins: int | None = None,
) -> jax.Array:
    """The Lovasz extension of the Jaccard loss of each class, at the errors `|y - p|`.

    `sum_k e_k (J_k - J_(k-1))` over the valid pixels of an image or of the batch, with errors `e = |y - p|` in
    descending order and `J_k` the Jaccard loss if the first k pixels were wrong and the rest right: see
    `lovasz.lovasz_extension`. For an absent class it is the largest probability.

    Classes that take no part in any image are not sorted: a batch with four of 21 classes costs a fifth.

    Args:
      logits: float `[*b, h, w, c]`.
      labels: integers `[*b, h, w]`, class ids.
      where: bool `[*b, h, w]`, the pixels that count; None: all.
      per_image: sorts each image, otherwise the batch.
      classes: `present`, `all` or class ids, see `build`; the value of what takes no part is 0.
      bins: levels that errors are rounded to, see `build`; None: exact.

    Returns:
      float32 `[*b, c]`, or `[c]` where not `per_image`, each in [0, 1]. Three pixels with p = (.8, .2), (.4, .6),
      (.3, .7) and labels 0, 0, 1 give .416667 and .45.

    Raises:
      TypeError: labels are not integers, `where` is not bool, or logits are not floats.
      ValueError: shapes do not fit each other, there are 2^31 pixels or more, a class id is out of range, and, outside
        of jit, a label that is no class id or probabilities in place of logits.

    Reference: Berman et al., arXiv 1705.08790, equations 11 and 12.
    """
    logits, labels, where = checked_inputs(logits, labels, where)
    image_axes(logits.shape, per_image=per_image)
    num_classes = logits.shape[-1]
    parts = takes_part(labels, where, num_classes=num_classes, classes=classes, per_image=per_image, multi_hot=False)
    losses = _losses(logits, labels, where, parts, per_image, bins)
    unknown = where & ((labels < 0) | (labels >= num_classes))
    unknown = jnp.any(unknown, axis=(-2, -1))[..., None] if per_image else jnp.any(unknown)
    return jnp.where(unknown, jnp.nan, jnp.where(parts, losses, 0.0))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _losses(
    logits: jax.Array, labels: jax.Array, where: jax.Array, parts: jax.Array, per_image: bool, bins: int | None
) -> jax.Array:
    """`[*b, c]` or `[c]`. The gradient is written out: it is known once the errors are sorted, and needs no sort."""
    return _class_losses(logits, labels, where, parts, per_image, bins, slopes=False)[0]


def _class_losses(
    logits: jax.Array,
    labels: jax.Array,
    where: jax.Array,
    parts: jax.Array,
    per_image: bool,
    bins: int | None,
    *,
    slopes: bool,
) -> tuple[jax.Array, tuple]:
    top = jnp.max(logits, axis=-1, keepdims=True)
    scale = 1 / jnp.sum(jnp.exp(logits - top), axis=-1, keepdims=True)

    def errors(logit: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        p = jnp.exp(logit - top[..., 0]) * scale[..., 0]
        positive = where & (labels == index)
        sign = jnp.where(positive, -1.0, 1.0).astype(p.dtype)
        return jnp.where(where, jnp.where(positive, 1 - p, p), 0.0), positive, sign

    inputs = jnp.moveaxis(logits, -1, 0), jnp.arange(logits.shape[-1], dtype=labels.dtype)
    losses, slope = class_losses(errors, inputs, parts, per_image=per_image, slopes=slopes, bins=bins)
    return jnp.moveaxis(losses, 0, -1), (logits, where, top, scale, slope)


def _forward(
    logits: jax.Array, labels: jax.Array, where: jax.Array, parts: jax.Array, per_image: bool, bins: int | None
) -> tuple[jax.Array, tuple]:
    return _class_losses(logits, labels, where, parts, per_image, bins, slopes=True)


def _backward(per_image: bool, bins: int | None, residuals: tuple, upstream: jax.Array) -> tuple:
    logits, where, top, scale, slope = residuals
    slope = jnp.moveaxis(slope, 0, -1) * (upstream[..., None, None, :] if per_image else upstream)
    p = jnp.exp(logits - top) * scale
    gradient = p * (slope - jnp.sum(p * slope, axis=-1, keepdims=True))
    return jnp.where(where[..., None], gradient, 0.0), None, None, None


_losses.defvjp(_forward, _backward)
