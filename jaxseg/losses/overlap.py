"""Soft true positives, false positives and false negatives: what Dice, Jaccard and Tversky are made of."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxseg.core.errors import JaxsegError
from jaxseg.losses import options
from jaxseg.losses.inputs import checked_inputs, checked_multilabel_inputs, image_axes
from jaxseg.losses.multilabel import check_target_form
from jaxseg.losses.reduction import ByRows, Counts, Loss

ACTIVATIONS = ("softmax", "sigmoid")
CLASSES = ("present", "all")
Classes = str | Sequence[int]


class Overlap(NamedTuple):
    """Sums over the valid pixels of an image (`[*b, c]`) or of the batch (`[c]`), with probabilities p and targets y.

    Losses are written with `false_positive`, `false_negative` and `error`, which are sums of small numbers where a
    prediction is good; `predicted + true - 2 true_positive` would be a difference of large ones.

    Attributes:
      true_positive: `sum p y`.
      false_positive: `sum p (1 - y)`; `sum p` is `true_positive + false_positive`.
      false_negative: `sum (1 - p) y`.
      error: `sum |p - y|`, or `sum (p - y)^2` where asked for.
      true: `sum y`, an integer as a float; NaN where a label inside `where` is no class id.
      valid: number of valid pixels.
    """

    true_positive: jax.Array
    false_positive: jax.Array
    false_negative: jax.Array
    error: jax.Array
    true: jax.Array
    valid: jax.Array


def overlap_counts(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    activation: str = "softmax",
    per_image: bool = True,
    squared: bool = False,
) -> Overlap:
    """The soft counts of each class, in one pass over the logits; the backward pass computes the probabilities anew.

    Args:
      logits: float `[*b, h, w, c]`.
      labels: integers `[*b, h, w]`, class ids; with `sigmoid` also bool or 0 and 1 `[*b, h, w, c]`.
      where: bool `[*b, h, w]`, with `sigmoid` also `[*b, h, w, c]`; None: every pixel.
      activation: `softmax`: the classes of a pixel exclude each other; `sigmoid`: each class is a decision of its own.
      per_image: sums over each image; otherwise over the batch.
      squared: `error` is `sum (p - y)^2`.

    Returns:
      Six arrays, float32 (float64 where the logits are), `[*b, c]` or `[c]`. Logits (ln .8, ln .2), (ln .4, ln .6),
      (ln .3, ln .7) with labels 0, 0, 1 give class 1 true_positive .7, false_positive .8, false_negative .3.

    Raises:
      TypeError, ValueError: see `checked_inputs` and `checked_multilabel_inputs`; there are no rows and columns.
    """
    return overlap_of(
        overlap_sums(logits, labels, where=where, activation=activation, squared=squared), per_image=per_image
    )


def overlap_sums(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    activation: str = "softmax",
    squared: bool = False,
) -> tuple[jax.Array, ...]:
    """What `overlap_of` makes soft counts of, each `[*b, c]`: those of parts of an image add up to the image's.

    `sum y`, the number of valid pixels, `sum (1 - p) y`, `sum p (1 - y)` and, if `squared`, `sum (p - y)^2`.
    Arguments and errors as in `overlap_counts`.
    """
    if activation == "softmax":
        logits, labels, where = checked_inputs(logits, labels, where)
        images = image_axes(logits.shape, per_image=True)
        classes = logits.shape[-1]
        unknown = jnp.any(where & ((labels < 0) | (labels >= classes)), axis=(-2, -1))[..., None]
        true = _class_sizes(labels, where, classes)
        valid = jnp.broadcast_to(jnp.sum(where, axis=(-2, -1), dtype=jnp.int32)[..., None], true.shape)
        sums = _softmax_sums(logits, labels, where, squared)
    else:
        logits, targets, where = checked_multilabel_inputs(logits, labels, where)
        images = image_axes(logits.shape, per_image=True)
        # Two masks of a byte are less to keep for the backward pass than float targets.
        positive, unknown = (targets == 1) & where, jnp.any(jnp.isnan(targets) & where, axis=images)
        true, valid = (jnp.sum(mask, axis=images, dtype=jnp.int32) for mask in (positive, where))
        sums = _sigmoid_sums(logits, positive, where, squared)
    size = jnp.where(unknown, jnp.nan, true.astype(logits.dtype))
    return (size, valid.astype(logits.dtype), *sums)


def overlap_of(sums: tuple[jax.Array, ...], *, per_image: bool = True) -> Overlap:
    """The soft counts of `overlap_sums`; of the batch, `[c]`, where not `per_image`."""
    if not per_image:
        sums = tuple(jnp.sum(part, axis=tuple(range(part.ndim - 1))) for part in sums)
    size, valid, false_negative, false_positive, *squares = sums
    # A sum of rounded 1 - p may pass the number of pixels by a rounding error.
    true_positive = size - jnp.minimum(false_negative, size)
    both = squares[0] if squares else false_positive + false_negative
    return Overlap(true_positive, false_positive, false_negative, both, size, valid)


def error_ratio(error: jax.Array, agreement: jax.Array, smooth: float = 0.0) -> jax.Array:
    """`error / (error + agreement + smooth)` = `1 - (agreement + smooth) / (error + agreement + smooth)`; 0 for 0 / 0.

    Dice: error `FP + FN`, agreement `2 TP`. Jaccard: `TP`. Tversky: error `a FP + b FN`, agreement `TP`.
    """
    total = error + agreement + smooth
    empty = total == 0  # not `> 0`, which would hide NaN
    return jnp.where(empty, 0.0, error / jnp.where(empty, 1.0, total))


def region_mask(overlap: Overlap, classes: Classes) -> jax.Array:
    """bool, of the sums' shape: the regions that take part in the mean; true also where a label is no class id."""
    return _takes_part(~(overlap.true == 0), ~(overlap.valid == 0) | jnp.isnan(overlap.true), classes)


def region_values(values: jax.Array, overlap: Overlap, classes: Classes) -> jax.Array:
    """The values of the regions that take part in the mean, 0 for the others."""
    # `values` come from guarded divisions, so that what is dropped here has finite gradients.
    return jnp.where(region_mask(overlap, classes), values, 0.0)


def region_counts(classes: Classes, *, per_image: bool, multi_hot: bool = False) -> Counts:
    """1 for each region that takes part in the mean, else 0: float32 `[*b, c]` or `[c]`.

    Args:
      classes: from `checked_region_options`.
      per_image: an image and class is a region; otherwise a class of the batch is.
      multi_hot: labels are 0 and 1 `[*b, h, w, c]`; otherwise class ids `[*b, h, w]`.
    """

    def counts(labels: ArrayLike, *, where: ArrayLike | None = None, num_classes: int) -> jax.Array:
        labels = jnp.asarray(labels)
        pixels = labels.shape[:-1] if multi_hot else labels.shape
        where = jnp.ones(pixels, bool) if where is None else jnp.asarray(where)
        wide = where if where.ndim > len(pixels) else where[..., None]
        if multi_hot:
            true = jnp.sum(wide & labels.astype(bool), axis=(-3, -2), dtype=jnp.int32)
        else:
            # A label that is no id counts as some class, so that the loss, which is NaN then, is not dropped.
            ids = jnp.clip(labels.astype(jnp.int32), 0, num_classes - 1)
            true = _class_sizes(ids, jnp.any(wide, axis=-1), num_classes)
        valid = jnp.broadcast_to(jnp.sum(wide, axis=(-3, -2), dtype=jnp.int32), true.shape)
        lead = () if per_image else tuple(range(true.ndim - 1))
        present, seen = (jnp.any(array > 0, axis=lead) for array in (true, valid))
        return _takes_part(present, seen, classes).astype(jnp.float32)

    return counts


def region_loss(
    name: str,
    formula: Callable[..., jax.Array],
    *,
    classes: Classes,
    per_image: bool,
    activation: str,
    multi_hot: bool,
    squared: bool = False,
    **others: Any,
) -> Loss:
    """The loss `name` of a config: `formula(overlap, classes=..., **others)` of the soft counts.

    Raises:
      JaxsegError: classes, activation or multi_hot are not what they can be.
    """
    classes = checked_region_options(name, classes, activation)
    if multi_hot and activation != "sigmoid":
        raise JaxsegError(f"config.loss.{name}.multi_hot needs activation = 'sigmoid'.")

    def values(logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
        found = of_sums(overlap_sums(logits, labels, where=where, activation=activation, squared=squared))
        check_target_form(logits, labels, multi_hot=multi_hot)
        return found

    def of_sums(sums: tuple[jax.Array, ...]) -> jax.Array:
        return formula(overlap_of(sums, per_image=per_image), classes=classes, **others)

    def sums(logits: jax.Array, labels: jax.Array, where: jax.Array, weights: None) -> tuple[jax.Array, ...]:
        del weights
        return overlap_sums(logits, labels, where=where, activation=activation, squared=squared)

    counts = region_counts(classes, per_image=per_image, multi_hot=multi_hot)
    by_rows = None if multi_hot else ByRows(sums, of_sums)
    return Loss(values, counts, whole_batch=not per_image, by_rows=by_rows)


def checked_region_options(name: str, classes: Classes, activation: str = "softmax", **at_least_zero: float) -> Classes:
    """The classes as a name or a tuple of ids.

    Raises:
      JaxsegError: an option is out of its range.
    """
    options.choice(f"{name}.activation", activation, ACTIVATIONS)
    for option, value in at_least_zero.items():
        options.number(f"{name}.{option}", value)
    where = f"config.loss.{name}"
    if isinstance(classes, str):
        if classes not in CLASSES:
            raise JaxsegError(f"{where}.classes = {classes!r} is not present, all or a list of class ids.")
        return classes
    ids = tuple(classes)
    if not ids or len(set(ids)) < len(ids) or not all(isinstance(i, int) and i >= 0 for i in ids):
        raise JaxsegError(f"{where}.classes = {ids}: class ids are integers of at least 0, each given once.")
    return ids


def _takes_part(present: jax.Array, seen: jax.Array, classes: Classes) -> jax.Array:
    """`present`: regions with a true pixel; `seen`: regions with a valid pixel."""
    if isinstance(classes, str):
        return present if classes == "present" else seen
    if max(classes) >= seen.shape[-1]:
        raise ValueError(f"class {max(classes)} of the loss's classes is not in 0..{seen.shape[-1] - 1}")
    chosen = jnp.zeros(seen.shape[-1], bool).at[jnp.asarray(classes)].set(True)
    return seen & chosen


def _class_sizes(labels: jax.Array, where: jax.Array, num_classes: int) -> jax.Array:
    """Pixels of each class, int32 `[*b, c]`: exact where float32 stops counting at 2^24."""

    def by_scatter(labels: jax.Array, where: jax.Array) -> jax.Array:
        """Sixteen times as fast as comparing on a CPU; other platforms run comparisons in parallel."""
        known = where & (labels >= 0) & (labels < num_classes)
        bins = jnp.where(known, labels, num_classes).reshape(-1, math.prod(labels.shape[-2:]))
        one = lambda image: jnp.zeros(num_classes + 1, jnp.int32).at[image].add(1, mode="promise_in_bounds")  # noqa: E731
        return jax.vmap(one)(bins)[:, :-1].reshape(*labels.shape[:-2], num_classes)

    def by_comparison(labels: jax.Array, where: jax.Array) -> jax.Array:
        return jnp.sum(_hot(labels, num_classes) & where[..., None], axis=(-3, -2), dtype=jnp.int32)

    return jax.lax.platform_dependent(labels, where, cpu=by_scatter, default=by_comparison)


def _hot(labels: jax.Array, num_classes: int) -> jax.Array:
    return labels[..., None] == jax.lax.broadcasted_iota(labels.dtype, (*labels.shape, num_classes), labels.ndim)


def _sums(p: jax.Array, positive: jax.Array, where: jax.Array, squared: bool) -> tuple[jax.Array, ...]:
    """False negatives, false positives and, if `squared`, the sum of squared differences."""
    miss = jnp.where(positive & where, 1 - p, 0.0)
    alarm = jnp.where(where & ~positive, p, 0.0)
    parts = (miss, alarm, (miss + alarm) ** 2) if squared else (miss, alarm)
    return tuple(jnp.sum(part, axis=(-3, -2)) for part in parts)


def _slope(p: jax.Array, positive: jax.Array, upstream: tuple[jax.Array, ...]) -> jax.Array:
    """The derivative by p of what comes out of `_sums`, inside `where`."""
    miss, alarm, *square = (array[..., None, None, :] for array in upstream)
    slope = jnp.where(positive, -miss, alarm)
    return slope + 2 * square[0] * (p - positive.astype(p.dtype)) if square else slope


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _softmax_sums(logits: jax.Array, labels: jax.Array, where: jax.Array, squared: bool) -> tuple[jax.Array, ...]:
    """The gradient is written out so that only the logits stay, and two numbers a pixel, not the probabilities."""
    return _softmax_forward(logits, labels, where, squared)[0]


def _softmax_forward(logits: jax.Array, labels: jax.Array, where: jax.Array, squared: bool) -> tuple:
    top = jnp.max(logits, axis=-1, keepdims=True)
    scale = 1 / jnp.sum(jnp.exp(logits - top), axis=-1, keepdims=True)
    p = jnp.exp(logits - top) * scale
    return _sums(p, _hot(labels, p.shape[-1]), where[..., None], squared), (logits, labels, where, top, scale)


def _softmax_backward(squared: bool, residuals: tuple, upstream: tuple[jax.Array, ...]) -> tuple:
    logits, labels, where, top, scale = residuals
    p = jnp.exp(logits - top) * scale
    slope = _slope(p, _hot(labels, p.shape[-1]), upstream)
    gradient = p * (slope - jnp.sum(p * slope, axis=-1, keepdims=True))
    return jnp.where(where[..., None], gradient, 0.0), None, None


_softmax_sums.defvjp(_softmax_forward, _softmax_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _sigmoid_sums(logits: jax.Array, positive: jax.Array, where: jax.Array, squared: bool) -> tuple[jax.Array, ...]:
    return _sigmoid_forward(logits, positive, where, squared)[0]


def _sigmoid_forward(logits: jax.Array, positive: jax.Array, where: jax.Array, squared: bool) -> tuple:
    return _sums(jax.nn.sigmoid(logits), positive, where, squared), (logits, positive, where)


def _sigmoid_backward(squared: bool, residuals: tuple, upstream: tuple[jax.Array, ...]) -> tuple:
    logits, positive, where = residuals
    p = jax.nn.sigmoid(logits)
    gradient = p * jax.nn.sigmoid(-logits) * _slope(p, positive, upstream)
    return jnp.where(where, gradient, 0.0), None, None


_sigmoid_sums.defvjp(_sigmoid_forward, _sigmoid_backward)
