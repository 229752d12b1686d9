"""The Lovasz extension of the Jaccard loss (Berman et al., arXiv 1705.08790), for softmax and for hinge errors."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxseg.losses.overlap import Classes, region_counts

_UNSIGNED = {4: jnp.uint32, 8: jnp.uint64}


def lovasz_extension(errors: jax.Array, positive: jax.Array) -> jax.Array:
    """The Lovasz extension of `1 - intersection / union`, at these errors.

    `sum_k e_k (J_k - J_(k-1))` over the errors in descending order, `J_k = 1 - (G - F_k) / (G + B_k)`, where G pixels
    are of the class and of the k first ones F_k are and B_k are not. Without a pixel of the class it is the largest
    error.

    A pixel with error 0 that is not of the class changes nothing: so void is given.

    Args:
      errors: float `[*r, n]`, at least 0.
      positive: bool `[*r, n]`, pixels of the class.

    Returns:
      `[*r]`. Errors .2, .6, .3, the last of the class, give .45.

    Reference: Berman et al., arXiv 1705.08790, equations 8 and 9, algorithm 1.
    """
    error, weight = _weights(jax.lax.sort(_keys(errors, positive)), errors.dtype)
    return jnp.sum(error * weight, axis=-1)


def lovasz_slopes(errors: jax.Array, positive: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The Lovasz extension `[*r]`, and its derivative by each error `[*r, n]`.

    Equal errors are taken in one order, that of the class first and then as given: one of the subgradients.
    """
    keys = _keys(errors, positive)
    places = jax.lax.broadcasted_iota(jnp.int32, errors.shape, errors.ndim - 1)
    keys, places = jax.lax.sort((keys, places), num_keys=1, is_stable=True)
    error, weight = _weights(keys, errors.dtype)
    rows = (math.prod(errors.shape[:-1]), errors.shape[-1])

    def back(weight: jax.Array, places: jax.Array) -> jax.Array:
        return jnp.zeros_like(weight).at[places].set(weight, unique_indices=True, mode="promise_in_bounds")

    slopes = jax.vmap(back)(weight.reshape(rows), places.reshape(rows)).reshape(errors.shape)
    return jnp.sum(error * weight, axis=-1), slopes


def binned_slopes(errors: jax.Array, positive: jax.Array, bins: int) -> tuple[jax.Array, jax.Array]:
    """As `lovasz_slopes`, of errors in [0, 1] that count as equal where they round to the same of `bins` levels.

    Counting replaces sorting. The loss is at most `1 / (bins - 1)` below the exact one, as the order of errors matters
    only as much as they differ; the pixels of a level and class share their part of the growth.
    """
    level = jnp.clip(jnp.round((1 - errors) * (bins - 1)).astype(jnp.int32), 0, bins - 1)
    cells = 2 * level + (~positive).astype(jnp.int32)
    rows = (math.prod(errors.shape[:-1]), errors.shape[-1])

    def one(cells: jax.Array) -> jax.Array:
        counts = jnp.zeros(2 * bins, jnp.int32).at[cells].add(1, mode="promise_in_bounds").reshape(bins, 2)
        before = jnp.cumsum(counts, axis=0) - counts
        own, other = counts[:, 0], counts[:, 1]
        total = jnp.sum(own, dtype=jnp.int32)
        union = (total + before[:, 1]).astype(errors.dtype)
        missing = (total - before[:, 0] - own).astype(errors.dtype)
        share = missing / jnp.maximum(union + other.astype(errors.dtype), 1)
        first = (before[:, 1] == 0).astype(errors.dtype) / jnp.maximum(other, 1).astype(errors.dtype)
        growth = jnp.where(total > 0, share / jnp.maximum(union, 1), first)
        table = jnp.stack([1 / jnp.maximum(union, 1), growth], axis=-1).reshape(-1)
        return table.at[cells].get(mode="promise_in_bounds")

    slopes = jax.vmap(one)(cells.reshape(rows)).reshape(errors.shape)
    return jnp.sum(errors * slopes, axis=-1), slopes


def _keys(errors: jax.Array, positive: jax.Array) -> jax.Array:
    """Unsigned numbers in whose ascending order the errors descend.

    The bits of floats that are not negative are ordered as the floats are, and leave the sign's place free: there goes
    whether the pixel is of the class. One number holds both exactly, so that a sort carries one array less.
    """
    unsigned = _UNSIGNED[errors.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(errors, unsigned)
    return ~((bits << jnp.ones((), unsigned)) | positive.astype(unsigned))


def _weights(keys: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Errors in descending order and the growth of the Jaccard loss at each, from sorted keys.

    The growth is written as a fraction of counts, which are integers: differences of J in float32 have no correct digit
    from a million pixels on.
    """
    one = jnp.ones((), keys.dtype)
    error = jax.lax.bitcast_convert_type(~keys >> one, dtype)
    positive = (~keys & one).astype(jnp.int32)
    rank = jax.lax.broadcasted_iota(jnp.int32, keys.shape, keys.ndim - 1)
    found = jnp.cumsum(positive, axis=-1)
    before = found - positive
    total = found[..., -1:]
    union = (total + rank - before).astype(dtype)
    missing = (total - before).astype(dtype)
    growth = jnp.where(positive > 0, 1.0, missing / (union + 1)) / jnp.maximum(union, 1)
    # Without a pixel of the class the first one that is called so makes the loss 1.
    return error, jnp.where(total > 0, growth, (rank == 0).astype(dtype))


Errors = Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


def class_losses(
    errors: Errors,
    inputs: tuple[jax.Array, ...],
    takes_part: jax.Array,
    *,
    per_image: bool,
    slopes: bool,
    bins: int | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """The extension of each class, one class after the other, so that only one is sorted at a time.

    Args:
      errors: of the inputs of one class to (errors, pixels of the class, derivative of the errors), each `[*b, h, w]`.
      inputs: arrays with the classes first.
      takes_part: bool `[*b, c]` or `[c]`; a class that is False everywhere is not sorted.
      per_image: a loss for each image, otherwise for the batch.
      slopes: whether to return derivatives.
      bins: levels that errors in [0, 1] are rounded to; None: they are sorted.

    Returns:
      Losses `[c, *b]` or `[c]`, and derivatives by what `errors` derives by `[c, *b, h, w]`, or None.

    Raises:
      ValueError: there are 2^31 pixels or more, which int32 cannot count.
    """
    if inputs[0].size // inputs[0].shape[0] >= 2**31:
        raise ValueError(f"logits with the classes first {inputs[0].shape} hold 2^31 pixels or more; split the batch")

    def counted(own: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array | None]:
        error, positive, sign = errors(*own)
        flat = (*error.shape[:-2], -1) if per_image else (-1,)
        arguments = error.reshape(flat), positive.reshape(flat)
        if not slopes and bins is None:
            return lovasz_extension(*arguments), None
        loss, slope = lovasz_slopes(*arguments) if bins is None else binned_slopes(*arguments, bins)
        if not slopes:
            return loss, None
        return loss, slope.reshape(error.shape) * sign

    def skipped(own: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array | None]:
        shapes = jax.eval_shape(counted, own)
        return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

    parts = jnp.any(takes_part, axis=tuple(range(takes_part.ndim - 1)))
    return jax.lax.map(lambda one: jax.lax.cond(one[1], counted, skipped, one[0]), (inputs, parts))


def takes_part(
    labels: ArrayLike, where: jax.Array, *, num_classes: int, classes: Classes, per_image: bool, multi_hot: bool
) -> jax.Array:
    """bool `[*b, c]` or `[c]`: the regions in the mean."""
    counts = region_counts(classes, per_image=per_image, multi_hot=multi_hot)
    return counts(labels, where=where, num_classes=num_classes) > 0
