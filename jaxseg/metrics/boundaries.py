"""What the boundary metrics share: label maps, their boundaries, tolerances in exact integers, histograms, means."""

import math
from fractions import Fraction
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxseg.core.errors import JaxsegError

VOID = -2  # what is outside `where`
NO_CLASS = -1  # a prediction that is no class id: different from every class
Outside = Literal["ignore", "background"]

_NEIGHBOURS = {
    4: ((-1, 0), (0, -1), (0, 1), (1, 0)),
    8: ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)),
}


def label_maps(
    labels: ArrayLike, predictions: ArrayLike, where: ArrayLike | None, *, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """Ground truth and prediction as small signed integers `[*b, h, w]`, `VOID` outside `where` in both.

    A label inside `where` that is no class id is void too; a prediction that is none becomes `NO_CLASS`.

    Raises:
      TypeError: labels or predictions are not integers, or `where` is not bool.
      ValueError: shapes differ or have fewer than two dimensions, or `num_classes` is not in 1..32767.
    """
    labels, predictions = jnp.asarray(labels), jnp.asarray(predictions)
    where = jnp.ones(labels.shape, bool) if where is None else jnp.asarray(where)
    for name, array in (("labels", labels), ("predictions", predictions)):
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise TypeError(f"{name} must be integers, not {array.dtype}")
    if where.dtype != jnp.bool_:
        raise TypeError(f"where must be bool, not {where.dtype}")
    if not labels.shape == predictions.shape == where.shape:
        raise ValueError(f"labels {labels.shape}, predictions {predictions.shape}, where {where.shape} differ in shape")
    if labels.ndim < 2 or 0 in labels.shape[-2:]:
        raise ValueError(f"a boundary needs images [*b, h, w] with a pixel, not {labels.shape}")
    if not 1 <= num_classes < 2**15:
        raise ValueError(f"num_classes = {num_classes} is not in 1..32767")
    valid = where & (labels >= 0) & (labels < num_classes)
    known = (predictions >= 0) & (predictions < num_classes)
    # 16 bits: the loops over windows are bound by memory.
    truth = jnp.where(valid, labels.astype(jnp.int16), jnp.int16(VOID))
    guess = jnp.where(known, predictions.astype(jnp.int16), jnp.int16(NO_CLASS))
    return truth, jnp.where(valid, guess, jnp.int16(VOID))


def checked_outside(outside: Outside, *, key: str) -> Outside:
    """`outside` as it is; raises JaxsegError, which names `key`, unless it is `ignore` or `background`."""
    if outside not in ("ignore", "background"):
        raise JaxsegError(f"{key}.outside = {outside!r} is neither 'ignore' nor 'background'.")
    return outside


def boundary_pixels(classes: jax.Array, *, outside: Outside = "ignore", connectivity: int = 4) -> jax.Array:
    """True for the pixels of a map with a neighbour of another class: the inner boundaries of all classes at once.

    Args:
      classes: a map of `label_maps`, `[*b, h, w]`.
      outside: what void pixels and the image's surroundings are: `ignore`: no neighbour; `background`: another class.
        Both treat void and surroundings alike, so that padding an image with void changes nothing.
      connectivity: 4 or 8 neighbours.

    Returns:
      bool `[*b, h, w]`, False at void pixels. The row 0 0 1 1 gives F T T F, with `background` in one row T T T T.
    """
    height, width = classes.shape[-2:]
    padded = pad_images(classes, 1, VOID)
    found = jnp.zeros(classes.shape, bool)
    for dy, dx in _NEIGHBOURS[connectivity]:
        near = padded[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        differs = near != classes
        found |= differs & (near != VOID) if outside == "ignore" else differs
    return found & (classes != VOID)


def pad_images(images: jax.Array, margin: int, value: Any) -> jax.Array:
    """Adds `margin` rows and columns of `value` on each side of `[*b, h, w]`."""
    widths = [(0, 0)] * (images.ndim - 2) + [(margin, margin)] * 2
    return jnp.pad(images, widths, constant_values=value)


def squared_diagonal(size: ArrayLike | None, shape: tuple[int, ...]) -> jax.Array:
    """`height^2 + width^2` of each image, int32 `[*b]`.

    Args:
      size: integers `[*b, 2]`, (height, width) of each image without the padding of its batch; None: the array's.
      shape: the array's `[*b, h, w]`.

    Raises:
      ValueError: `size` does not fit the shape, or the image is too large for exact int32 arithmetic.
    """
    if shape[-2] ** 2 + shape[-1] ** 2 >= 2**30:
        raise ValueError(f"images {shape[-2:]} are too large: squared distances would not fit into int32")
    if size is None:
        return jnp.full(shape[:-2], shape[-2] ** 2 + shape[-1] ** 2, jnp.int32)
    size = jnp.asarray(size)
    if size.shape != (*shape[:-2], 2) or not jnp.issubdtype(size.dtype, jnp.integer):
        raise ValueError(f"size must be integers {(*shape[:-2], 2)}, not {size.dtype} {size.shape}")
    # Larger than the array means nothing, and would ask for windows that were not laid out.
    size = jnp.clip(size.astype(jnp.int32), 0, jnp.asarray(shape[-2:], jnp.int32))
    return jnp.sum(size**2, axis=-1, dtype=jnp.int32)


def squared_tolerance(fraction: float, diagonal: jax.Array, largest: int) -> jax.Array:
    """`floor(fraction^2 diagonal)`, exact: the largest squared integer distance that is within the tolerance.

    Args:
      fraction: the tolerance as a part of the diagonal, a decimal number as it is written.
      diagonal: int32 squared diagonals.
      largest: the largest squared diagonal there can be.
    """
    square = exact(fraction) ** 2
    steps = [-(-t // square) for t in range(1, math.floor(square * largest) + 1)]
    return _steps_reached(steps, diagonal)


def rounded_width(fraction: float, diagonal: jax.Array, largest: int) -> jax.Array:
    """`max(1, round(fraction sqrt(diagonal)))`, exact, halves to even; arguments as in `squared_tolerance`."""
    part, t = exact(fraction), 2
    steps: list[int] = []
    while True:
        least = ((t - Fraction(1, 2)) / part) ** 2
        # Exactly at a half the odd neighbour is not taken.
        step = math.floor(least) + 1 if t % 2 and least.denominator == 1 else math.ceil(least)
        if step > largest:
            return 1 + _steps_reached(steps, diagonal)
        steps.append(step)
        t += 1


def exact(number: float) -> Fraction:
    """The decimal number that is written: 0.1 is 1/10, not the nearest binary fraction."""
    return Fraction(str(number))


def _steps_reached(steps: list[int], values: jax.Array) -> jax.Array:
    """How many of the ascending steps each value has reached."""
    if not steps:
        return jnp.zeros(values.shape, jnp.int32)
    return jnp.searchsorted(jnp.asarray(steps, jnp.int32), values, side="right").astype(jnp.int32)


def histogram(cells: jax.Array, bins: int) -> jax.Array:
    """How often each of 0..bins-1 occurs in each image, int32 `[*b, bins]`; what is outside them is not counted.

    Args:
      cells: integers `[*b, h, w]`.
      bins: number of bins.
    """
    lead = cells.shape[:-2]
    cells = cells.astype(jnp.int32)
    rows = jnp.where((cells >= 0) & (cells < bins), cells, bins).reshape(math.prod(lead), -1)

    def scatter(rows: jax.Array) -> jax.Array:
        def one(row: jax.Array) -> jax.Array:
            return jnp.zeros(bins + 1, jnp.int32).at[row].add(1, mode="promise_in_bounds")

        return jax.vmap(one)(rows)[:, :-1]

    def compare(rows: jax.Array) -> jax.Array:
        """TPUs scatter one element at a time."""
        count = jax.lax.map(lambda k: jnp.sum(rows == k, axis=-1, dtype=jnp.int32), jnp.arange(bins, dtype=jnp.int32))
        return count.T

    return jax.lax.platform_dependent(rows, tpu=compare, default=scatter).reshape(*lead, bins)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """float64 quotient of integers, NaN where the denominator is 0."""
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), np.nan)


def mean_of_defined(values: np.ndarray) -> float:
    """The mean of what is not NaN, the same bits in any order; NaN where nothing is."""
    kept = values[~np.isnan(values)]
    return math.fsum(kept.tolist()) / kept.size if kept.size else math.nan


def image_and_class_means(values: np.ndarray) -> tuple[float, list[float]]:
    """Means of a value per image and class, undefined ones (NaN) left out; the order of the images does not matter.

    Args:
      values: float64 `[n, C]`.

    Returns:
      the mean over the images of each image's mean over its classes, and the mean over the images for each class.
    """
    of_images = np.asarray([mean_of_defined(row) for row in values])
    return mean_of_defined(of_images), [mean_of_defined(column) for column in values.T]
