"""What the losses about boundaries share: one class after another as maps, their distances, and their mean's divisor.

Void is neither foreground nor background: distances run to the nearest valid pixel of either kind, and the image may be
padded with void without a change.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxseg.core.errors import JaxsegError
from jaxseg.losses import options
from jaxseg.losses.inputs import checked_inputs, checked_multilabel_inputs, masked_softmax, one_hot
from jaxseg.losses.multilabel import check_target_form
from jaxseg.losses.overlap import ACTIVATIONS
from jaxseg.losses.reduction import Counts, Loss
from jaxseg.ops.distance_transform import NO_TARGET, squared_distance

Classes = str | Sequence[int]


def map_loss(
    name: str,
    function: Callable[..., jax.Array],
    *,
    classes: Classes,
    activation: str,
    multi_hot: bool,
    **others: Any,
) -> Loss:
    """The loss `name` of a config, whose `function` gives a value a pixel and class: the mean over the valid ones.

    Raises:
      JaxsegError: classes, activation or multi_hot are not what they can be.
    """
    options.choice(f"{name}.activation", activation, ACTIVATIONS)
    if multi_hot and activation != "sigmoid":
        raise JaxsegError(f"config.loss.{name}.multi_hot needs activation = 'sigmoid'.")
    ids = _checked_classes(name, classes)

    def values(logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
        found = function(logits, labels, where=where, classes=ids, activation=activation, **others)
        check_target_form(logits, labels, multi_hot=multi_hot)
        return found

    return Loss(values, _entry_counts(ids, multi_hot))


def class_maps(
    logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None, classes: Classes, activation: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Probabilities, targets and mask of the chosen classes, all 0 outside the mask.

    Args:
      logits: float `[*b, h, w, c]`.
      labels: class ids `[*b, h, w]`; with `sigmoid` also 0 and 1 `[*b, h, w, c]`.
      where: bool `[*b, h, w]`, with `sigmoid` also `[*b, h, w, c]`; None: all.
      classes: `all`, or k class ids.
      activation: `softmax` or `sigmoid`.

    Returns:
      p and y `[*b, h, w, k]`, float32 (float64 where the logits are), y NaN where a label is no class id; and bool
      `[*b, h, w, k]`, with `softmax` `[*b, h, w, 1]`.

    Raises:
      TypeError, ValueError: see `checked_inputs` and `checked_multilabel_inputs`; an id that the logits do not have.
    """
    if activation == "softmax":
        logits, labels, where = checked_inputs(logits, labels, where)
        p, y = masked_softmax(logits, where), one_hot(labels, where, logits.shape[-1], logits.dtype)
        where = where[..., None]
    else:
        logits, y, where = checked_multilabel_inputs(logits, labels, where)
        p = jnp.where(where, jax.nn.sigmoid(jnp.where(where, logits, 0.0)), 0.0)
        y = jnp.where(where, y, 0.0)
    if p.ndim < 3:
        raise ValueError(f"distances need logits [*b, h, w, c], not {p.shape}")
    if isinstance(classes, str):
        return p, y, where
    if max(classes) >= p.shape[-1]:
        raise ValueError(f"class {max(classes)} of the loss's classes is not in 0..{p.shape[-1] - 1}")
    p, y = (jnp.stack([array[..., i] for i in classes], axis=-1) for array in (p, y))
    return p, y, where if where.shape[-1] == 1 else jnp.stack([where[..., i] for i in classes], axis=-1)


def each_class(function: Callable[..., jax.Array], where: jax.Array, *maps: jax.Array, again: bool = True) -> jax.Array:
    """`function(*maps, where)` of each class's `[*b, h, w]`, one class at a time, as `[*b, h, w, k]`.

    With `again`, nothing but the maps is kept for the backward pass, which runs the function again: loops inside it
    would otherwise keep each of their steps for all classes at once. Without, what the function itself keeps.
    """
    wide = where.shape[-1] > 1
    stacks = tuple(jnp.moveaxis(array, -1, 0) for array in (*maps, *([where] if wide else [])))

    def one(arrays: tuple[jax.Array, ...]) -> jax.Array:
        return function(*arrays) if wide else function(*arrays, where[..., 0])

    return jnp.moveaxis(lax.map(jax.checkpoint(one) if again else one, stacks), 0, -1)


def squared_distances(masks: Sequence[jax.Array], where: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """Squared distances of each pixel to the valid pixels of a mask, and to those outside it, for each mask.

    Returns:
      Pairs of int32 `[*b, h, w]`; both are 0 in an image without either, in which the mask has no outline.
    """
    # [*b, sides, h, w]: the batch stays the first axis, as it is sharded; one call, as its compilation takes seconds.
    targets = jnp.stack([side & where for mask in masks for side in (mask, ~mask)], axis=-3)
    pairs = jnp.any(targets, axis=(-2, -1)).reshape(*targets.shape[:-3], len(masks), 2)
    # A class that no image has costs nothing.
    some = jnp.any(jnp.all(pairs, axis=-1))
    found = lax.cond(some, squared_distance, lambda t: jnp.full(t.shape, NO_TARGET, jnp.int32), targets)
    sides = [found[..., i, :, :] for i in range(2 * len(masks))]
    result = []
    for inside, outside in zip(sides[::2], sides[1::2], strict=True):
        missing = (inside == NO_TARGET) | (outside == NO_TARGET)
        result.append((jnp.where(missing, 0, inside), jnp.where(missing, 0, outside)))
    return result


def _checked_classes(name: str, classes: Classes) -> Classes:
    if isinstance(classes, str):
        if classes != "all":
            raise JaxsegError(f"config.loss.{name}.classes = {classes!r} is not all or a list of class ids.")
        return classes
    ids = tuple(classes)
    if not ids or len(set(ids)) < len(ids) or not all(isinstance(i, int) and i >= 0 for i in ids):
        raise JaxsegError(f"config.loss.{name}.classes = {ids}: class ids are integers of at least 0, each given once.")
    return ids


def _entry_counts(classes: Classes, multi_hot: bool) -> Counts:
    """Valid pixels of each chosen class, float32 `[*b, k]`, from an exact integer for each image."""

    def counts(labels: ArrayLike, *, where: ArrayLike | None = None, num_classes: int) -> jax.Array:
        labels = jnp.asarray(labels)
        pixels = labels.shape[:-1] if multi_hot else labels.shape
        where = jnp.ones(pixels, bool) if where is None else jnp.asarray(where)
        ids = range(num_classes) if isinstance(classes, str) else classes
        if where.ndim == len(pixels):
            valid = jnp.sum(where, axis=(-2, -1), dtype=jnp.int32)[..., None]
            return jnp.broadcast_to(valid, (*valid.shape[:-1], len(ids))).astype(jnp.float32)
        valid = jnp.sum(where, axis=(-3, -2), dtype=jnp.int32)
        return jnp.stack([valid[..., i] for i in ids], axis=-1).astype(jnp.float32)

    return counts
