"""Lovasz hinge loss for binary decisions (Berman et al., arXiv 1705.08790)."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxseg.losses.inputs import checked_multilabel_inputs, image_axes
from jaxseg.losses.lovasz import class_losses, takes_part
from jaxseg.losses.multilabel import check_target_form
from jaxseg.losses.overlap import Classes, checked_region_options, region_counts
from jaxseg.losses.reduction import Loss


def build(*, per_image: bool = True, classes: Classes = "all", multi_hot: bool = False) -> Loss:
    """The loss `lovasz_hinge` of a config: the mean of `lovasz_hinge` over the regions that `classes` names.

    Args:
      per_image: an image and class is a region; otherwise a class of the whole batch is.
      classes: which regions take part: `all`: those with a valid pixel; `present`: those with a true pixel; class ids:
        as `all`, of these classes.
      multi_hot: labels are 0 and 1 `[*b, h, w, c]`; otherwise class ids `[*b, h, w]`.

    Raises:
      JaxsegError: an option is out of its range.
    """
    classes = checked_region_options("lovasz_hinge", classes)

    def values(logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
        found = lovasz_hinge(logits, labels, where=where, per_image=per_image, classes=classes)
        check_target_form(logits, labels, multi_hot=multi_hot)
        return found

    counts = region_counts(classes, per_image=per_image, multi_hot=multi_hot)
    return Loss(values, counts, whole_batch=not per_image)


def lovasz_hinge(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    per_image: bool = True,
    classes: Classes = "all",
) -> jax.Array:
    """The Lovasz extension of the Jaccard loss of each binary decision, at the hinge errors `max(0, 1 - x (2 y - 1))`.

    `sum_k e_k (J_k - J_(k-1))` over the valid pixels of an image or of the batch, with errors in descending order and
    `J_k` the Jaccard loss if the first k pixels were wrong and the rest right: see `lovasz.lovasz_extension`. For an
    absent class it is the largest error.

    Args:
      logits: float `[*b, h, w, c]`, a decision a class; one class for foreground against background.
      labels: bool or 0 and 1 `[*b, h, w, c]`; or class ids `[*b, h, w]`.
      where: bool `[*b, h, w]` or `[*b, h, w, c]`, what counts; None: all.
      per_image: sorts each image, otherwise the batch.
      classes: `all`, `present` or class ids, see `build`; the value of what takes no part is 0.

    Returns:
      float32 `[*b, c]`, or `[c]` where not `per_image`, each at least 0. Logits (1, -1, .5) with labels
      1, 1, 0 give 1.25.

    Raises:
      TypeError: labels are floats, `where` is not bool, or logits are not floats.
      ValueError: shapes do not fit each other, there are 2^31 pixels or more, a class id is out of range, and, outside
        of jit, labels that are no class ids or no 0 and 1.

    Reference: Berman et al., arXiv 1705.08790, equation 10 and section 3.1; Yu and Blaschko, arXiv 1512.07797.
    Differences: errors below 0 are raised to 0 before the sort instead of after it, which gives the same number.
    """
    multi_hot = jnp.ndim(labels) == jnp.ndim(logits)
    narrow = labels
    logits, targets, where = checked_multilabel_inputs(logits, labels, where)
    axes = image_axes(logits.shape, per_image=per_image)
    parts = takes_part(
        narrow, where, num_classes=logits.shape[-1], classes=classes, per_image=per_image, multi_hot=multi_hot
    )
    losses = _losses(logits, (targets == 1) & where, where, parts, per_image)
    unknown = jnp.any(jnp.isnan(targets) & where, axis=axes)
    return jnp.where(unknown, jnp.nan, jnp.where(parts, losses, 0.0))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _losses(logits: jax.Array, positive: jax.Array, where: jax.Array, parts: jax.Array, per_image: bool) -> jax.Array:
    """`[*b, c]` or `[c]`. The gradient is written out: it is known once the errors are sorted, and needs no sort."""
    return _class_losses(logits, positive, where, parts, per_image, slopes=False)[0]


def _class_losses(
    logits: jax.Array, positive: jax.Array, where: jax.Array, parts: jax.Array, per_image: bool, *, slopes: bool
) -> tuple[jax.Array, jax.Array | None]:
    def errors(logit: jax.Array, positive: jax.Array, where: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        sign = jnp.where(positive, -1.0, 1.0).astype(logit.dtype)
        error = jnp.where(where, 1 + sign * logit, 0.0)
        return jnp.maximum(error, 0.0), positive, jnp.where(error > 0, sign, 0.0)

    inputs = tuple(jnp.moveaxis(array, -1, 0) for array in (logits, positive, where))
    losses, slope = class_losses(errors, inputs, parts, per_image=per_image, slopes=slopes)
    return jnp.moveaxis(losses, 0, -1), slope


def _forward(
    logits: jax.Array, positive: jax.Array, where: jax.Array, parts: jax.Array, per_image: bool
) -> tuple[jax.Array, jax.Array | None]:
    return _class_losses(logits, positive, where, parts, per_image, slopes=True)


def _backward(per_image: bool, slope: jax.Array, upstream: jax.Array) -> tuple:
    slope = jnp.moveaxis(slope, 0, -1)
    return slope * (upstream[..., None, None, :] if per_image else upstream), None, None, None


_losses.defvjp(_forward, _backward)
