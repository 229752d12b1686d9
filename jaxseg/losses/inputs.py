"""What every loss does first: check types, shapes and values, and take out what lies outside the mask."""

import math
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def checked_inputs(
    logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits as float32 (float64 stays), labels and mask as arrays, after a check of types, shapes and values.

    Values can be looked at outside of `jit` only; inside, a label that is no class id makes the loss NaN.

    Args:
      logits: float `[*b, h, w, c]`.
      labels: integers `[*b, h, w]`.
      where: bool `[*b, h, w]`; None: every pixel.

    Raises:
      TypeError: labels are not integers, `where` is not bool, or logits are not floats.
      ValueError: shapes do not fit each other, there is no pixel, a label inside `where` is no class id, or the logits
        are probabilities.
    """
    logits, labels = _floats(logits), jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers (class ids), not {labels.dtype}")
    where = _mask(where, labels.shape)
    if logits.ndim < 1 or logits.shape[:-1] != labels.shape or labels.shape != where.shape:
        raise ValueError(
            f"logits {logits.shape}, labels {labels.shape} and where {where.shape} do not fit: "
            "labels and where take the shape of the logits without the classes"
        )
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)  # a class id may exceed the range of a narrow type
    _refuse_no_pixels(logits)
    _refuse_unknown_labels(labels, where, logits.shape[-1])
    _refuse_probabilities(logits, where)
    return logits, labels, where


def checked_multilabel_inputs(
    logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits, targets and mask of a sigmoid (multi-label) loss, all of the logits' shape.

    Args:
      logits: float `[*b, h, w, c]`, one binary decision a class.
      labels: integers `[*b, h, w]`, class ids that become one-hot; or bool or integers 0 and 1 `[*b, h, w, c]`.
      where: bool `[*b, h, w]` or `[*b, h, w, c]`; None: everything.

    Returns:
      logits (float32, or float64), targets 0 or 1 of the same type (NaN where a label inside `where` is no class id),
      `where`; each `[*b, h, w, c]`.

    Raises:
      TypeError: labels are floats, `where` is not bool, or logits are not floats.
      ValueError: shapes do not fit each other, there is no pixel, or a label inside `where` is no class id (no 0 or 1).
    """
    logits, labels = _floats(logits), jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer) and labels.dtype != jnp.bool_:
        raise TypeError(f"labels must be class ids, or 0 and 1 for each class, as integers or bool, not {labels.dtype}")
    if labels.shape not in (logits.shape, logits.shape[:-1]) or logits.ndim < 1:
        raise ValueError(f"labels {labels.shape} are neither [*b, h, w] nor the shape of the logits {logits.shape}")
    where = _mask(where, labels.shape)
    if where.shape not in (logits.shape, logits.shape[:-1]):
        raise ValueError(f"where {where.shape} is neither [*b, h, w] nor the shape of the logits {logits.shape}")
    _refuse_no_pixels(logits)
    _warn_of_probabilities(logits)
    wide = jnp.broadcast_to(where[..., None] if where.ndim < logits.ndim else where, logits.shape)
    if labels.ndim == logits.ndim:
        labels = labels.astype(jnp.int32)
        _refuse_unknown_labels(labels, wide, 2)
        known = (labels == 0) | (labels == 1) | ~wide
        return logits, jnp.where(known, (labels == 1).astype(logits.dtype), jnp.nan), wide
    pixels = where if where.ndim < logits.ndim else jnp.any(wide, axis=-1)
    labels = labels.astype(jnp.int32)
    _refuse_unknown_labels(labels, pixels, logits.shape[-1])
    return logits, one_hot(labels, pixels, logits.shape[-1], logits.dtype), wide


def checked_class_weights(
    class_weights: ArrayLike | Sequence[float] | None,
    num_classes: int,
    dtype: jnp.dtype,
    *,
    name: str = "class_weights",
) -> jax.Array | None:
    """The weights as an array `[num_classes]`, or None; messages call them `name`.

    Raises:
      ValueError: their number is not `num_classes`, or one is negative or not finite.
    """
    if class_weights is None:
        return None
    weights = jnp.asarray(class_weights, dtype)
    if weights.shape != (num_classes,):
        raise ValueError(f"{name} has the shape {weights.shape}, the logits have {num_classes} classes")
    if _known(weights) and not (np.isfinite(weights).all() and (np.asarray(weights) >= 0).all()):
        raise ValueError(f"{name} are finite and not negative, not {np.asarray(weights).tolist()}")
    return weights


def checked_pixel_weights(pixel_weights: ArrayLike | None, where: jax.Array, dtype: jnp.dtype) -> jax.Array | None:
    """The weights as an array of `where`'s shape, 0 outside `where`, or None.

    Raises:
      ValueError: the shape is not that of `where`, or a weight inside `where` is negative or not finite.
    """
    if pixel_weights is None:
        return None
    weights = jnp.asarray(pixel_weights, dtype)
    if weights.shape != where.shape:
        raise ValueError(f"pixel_weights {weights.shape} and where {where.shape} differ in shape")
    weights = jnp.where(where, weights, 0.0)
    if _known(weights) and not (np.isfinite(weights).all() and (np.asarray(weights) >= 0).all()):
        raise ValueError("pixel_weights holds a negative weight, or one that is not finite")
    return weights


def of_label(values: jax.Array, labels: jax.Array) -> jax.Array:
    """`values[.., label]`, `[*b, h, w]`.

    TPUs gather number by number, and hold for it the classes, however few, in tiles of 128: there the classes are
    compared with the label and summed. The cross-entropy and its gradient on a CPU take 1.1 to 1.3 times that way.

    Args:
      values: floating `[*b, h, w, c]`, or `[c]` for all pixels.
      labels: integers `[*b, h, w]` in 0 .. c - 1.
    """

    def compared(values: jax.Array, labels: jax.Array) -> jax.Array:
        classes = jnp.arange(values.shape[-1], dtype=labels.dtype)
        return jnp.sum(jnp.where(classes == labels[..., None], values, jnp.zeros((), values.dtype)), axis=-1)

    def looked_up(values: jax.Array, labels: jax.Array) -> jax.Array:
        if values.ndim == 1:
            return values[labels]
        return jnp.take_along_axis(values, labels[..., None], axis=-1)[..., 0]

    return jax.lax.platform_dependent(values, labels, tpu=compared, default=looked_up)


def one_hot(labels: jax.Array, where: jax.Array, num_classes: int, dtype: jnp.dtype) -> jax.Array:
    """`[*b, h, w, c]`: 1 at the label's class, 0 elsewhere and outside `where`; NaN for labels inside that are none."""
    classes = jax.lax.broadcasted_iota(labels.dtype, (*labels.shape, num_classes), labels.ndim)
    hot = ((labels[..., None] == classes) & where[..., None]).astype(dtype)
    unknown = where & ((labels < 0) | (labels >= num_classes))
    return jnp.where(unknown[..., None], jnp.nan, hot)


def masked_softmax(logits: jax.Array, where: jax.Array) -> jax.Array:
    """Probabilities `[*b, h, w, c]`, 0 outside `where`, where logits have no influence, even NaN."""
    clean = jnp.where(where[..., None], logits, 0.0)  # before the arithmetic: 0 * NaN in a gradient is NaN
    return jnp.where(where[..., None], jax.nn.softmax(clean, axis=-1), 0.0)


def masked_log_softmax(logits: jax.Array, where: jax.Array) -> jax.Array:
    """Log probabilities `[*b, h, w, c]`, 0 outside `where`, where logits have no influence, even NaN."""
    clean = jnp.where(where[..., None], logits, 0.0)
    return jnp.where(where[..., None], jax.nn.log_softmax(clean, axis=-1), 0.0)


def image_axes(shape: Sequence[int], *, per_image: bool) -> tuple[int, ...]:
    """The axes of `[*b, h, w, c]` that a region's sum runs over: rows and columns, and the images unless `per_image`.

    Raises:
      ValueError: there are no rows and columns.
    """
    if len(shape) < 3:
        raise ValueError(f"a region needs logits [*b, h, w, c], not {tuple(shape)}")
    return (len(shape) - 3, len(shape) - 2) if per_image else tuple(range(len(shape) - 1))


def _floats(logits: ArrayLike) -> jax.Array:
    logits = jnp.asarray(logits)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"logits must be floats, not {logits.dtype}")
    return logits.astype(logits.dtype if logits.dtype.itemsize > 4 else jnp.float32)


def _mask(where: ArrayLike | None, shape: tuple[int, ...]) -> jax.Array:
    where = jnp.ones(shape, bool) if where is None else jnp.asarray(where)
    if where.dtype != jnp.bool_:
        raise TypeError(f"where must be bool, not {where.dtype}")
    return where


def _known(*arrays: jax.Array) -> bool:
    """Whether values can be read here: not under a transformation, and not spread over other processes."""
    return not any(isinstance(a, jax.core.Tracer) or not a.is_fully_addressable for a in arrays)


def _refuse_no_pixels(logits: jax.Array) -> None:
    if math.prod(logits.shape) == 0:
        raise ValueError(f"logits {logits.shape} hold no pixel or no class")


def _refuse_unknown_labels(labels: jax.Array, where: jax.Array, num_classes: int) -> None:
    if not _known(labels, where):
        return
    inside = np.asarray(labels)[np.asarray(where)]
    if inside.size and (inside.min() < 0 or inside.max() >= num_classes):
        wrong = inside[(inside < 0) | (inside >= num_classes)][0]
        raise ValueError(f"label {wrong} inside `where` is not in 0..{num_classes - 1}; void belongs outside `where`")


def _refuse_probabilities(logits: jax.Array, where: jax.Array) -> None:
    """Raises where every row is positive and adds up to 1: no network's logits do, softmax's output does."""
    if logits.shape[-1] < 2 or not _known(logits, where):
        return
    inside = np.asarray(logits)[np.asarray(where)]
    if inside.size and (inside >= 0).all() and np.allclose(inside.sum(axis=-1), 1, rtol=0, atol=1e-3):
        raise ValueError("logits are probabilities: every pixel's classes add up to 1; give them before the softmax")


def _warn_of_probabilities(logits: jax.Array) -> None:
    """Warns where all lie in [0, 1] and differ: a sigmoid's output does, a network's logits hardly ever."""
    if not _known(logits) or logits.size < 8:
        return
    values = np.asarray(logits)
    if values.min() >= 0 and values.max() <= 1 and values.min() < values.max():
        warnings.warn("logits all lie in [0, 1]; if they are probabilities, give them before the sigmoid", stacklevel=4)
