"""Boundary IoU of Cheng et al., arXiv 2103.16562: IoU of the inner bands of ground truth and prediction."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxseg.core.errors import JaxsegError
from jaxseg.metrics.boundaries import (
    VOID,
    Outside,
    checked_outside,
    exact,
    histogram,
    label_maps,
    mean_of_defined,
    pad_images,
    ratio,
    rounded_width,
    squared_diagonal,
)
from jaxseg.metrics.metric import Counts, Metric, Scores

Distance = Literal["chessboard", "euclidean"]
_KEY = "config.metrics.boundary_iou"


def build(
    *,
    num_classes: int,
    width_fraction: float = 0.02,
    width_px: int | None = None,
    distance: Distance = "chessboard",
    outside: Outside = "ignore",
) -> Metric:
    """The metric `boundary_iou` of a config.

    Args:
      num_classes: number of classes.
      width_fraction: the bands' width d as a part of the image's diagonal, rounded to pixels, at least 1.
      width_px: d in pixels, in place of the fraction.
      distance: `chessboard`, which the authors' code uses (d erosions by 3 x 3), or `euclidean`.
      outside: `ignore`: void and the edge of the image make no band; `background`: they do, as in the authors' code.

    Returns:
      A metric with the scores `boundary_iou` (per class, over the data set; NaN without a band) and
      `mean_boundary_iou` (over the classes with a band in ground truth or prediction).

    Raises:
      JaxsegError: an option is out of its range.
    """
    checked_outside(outside, key=_KEY)
    if width_px is None and not 0 < width_fraction <= 1:
        raise JaxsegError(f"{_KEY}.width_fraction = {width_fraction} is not in (0, 1].")
    if width_px is not None and (width_px != int(width_px) or width_px < 1):
        raise JaxsegError(f"{_KEY}.width_px = {width_px} is no positive whole number.")
    if distance not in ("chessboard", "euclidean"):
        raise JaxsegError(f"{_KEY}.distance = {distance!r} is neither 'chessboard' nor 'euclidean'.")

    def counts(labels: ArrayLike, outputs: ArrayLike, *, where: Any = None, size: Any = None) -> Counts:
        bands = band_counts(
            labels,
            outputs,
            num_classes=num_classes,
            where=where,
            size=size,
            width_fraction=width_fraction,
            width_px=width_px,
            distance=distance,
            outside=outside,
        )
        return {"bands": bands}

    return Metric(counts, lambda sums: _scores(sums["bands"]))


def band_counts(
    labels: ArrayLike,
    predictions: ArrayLike,
    *,
    num_classes: int,
    where: ArrayLike | None = None,
    size: ArrayLike | None = None,
    width_fraction: float = 0.02,
    width_px: int | None = None,
    distance: Distance = "chessboard",
    outside: Outside = "ignore",
) -> jax.Array:
    """Pixels of the inner bands of each class: in both maps, in the ground truth, in the prediction.

    A pixel of class c is in the inner band of c where a valid pixel of another class lies within d of it;
    `IoU_c = sum |G_d & P_d| / sum |G_d | P_d|` over all images. The prediction is void where the ground truth is.

    Args:
      labels: integers `[*b, h, w]`, the ground truth.
      predictions: integers `[*b, h, w]`.
      num_classes: number of classes, C.
      where: bool `[*b, h, w]`; None: every pixel.
      size: integers `[*b, 2]`, (height, width) of each image without padding, whose diagonal counts; None: `(h, w)`.
      width_fraction: d as a part of the diagonal, rounded (halves to even), at least 1 px.
      width_px: d in pixels in place of it.
      distance: `chessboard` or `euclidean`.
      outside: `ignore`: void and what surrounds the image are no class; `background`: they are another class.

    Returns:
      int32 `[*b, C, 3]`. With labels 0 0 0 1 1 1, predictions 0 0 1 1 1 1 and d = 1: class 0 has the bands {2} and {1},
      (0, 1, 1), class 1 the bands {3} and {2}, (0, 1, 1); with d = 2 class 0 has (1, 2, 2) and class 1 (1, 2, 2).

    Raises:
      TypeError, ValueError: as `boundaries.label_maps` and `boundaries.squared_diagonal`.

    Reference: Cheng et al., Boundary IoU, arXiv 2103.16562, section 4.
    """
    truth, guess = label_maps(labels, predictions, where, num_classes=num_classes)
    diagonal = squared_diagonal(size, truth.shape)
    height, width = truth.shape[-2:]
    if width_px is None:
        reach = rounded_width(width_fraction, diagonal, height**2 + width**2)
        most = max(1, math.ceil(exact(width_fraction) * (math.isqrt(height**2 + width**2) + 1)))
    else:
        most = min(int(width_px), max(height, width))
        reach = jnp.full(diagonal.shape, most, jnp.int32)
    near = _near_chessboard if distance == "chessboard" else _near_euclidean
    in_truth, in_guess = (near(x, reach, most, outside) & (x >= 0) for x in (truth, guess))
    both = jnp.where(in_truth & in_guess & (truth == guess), truth, jnp.int16(VOID))
    maps = (both, jnp.where(in_truth, truth, jnp.int16(VOID)), jnp.where(in_guess, guess, jnp.int16(VOID)))
    return jnp.stack([histogram(x, num_classes) for x in maps], axis=-1)


def _near_chessboard(classes: jax.Array, reach: jax.Array, most: int, outside: Outside) -> jax.Array:
    """Where a window of `2 reach + 1` squared holds another class: its largest and smallest class differ."""
    limits = jnp.iinfo(classes.dtype)
    void = classes == VOID
    # Void may neither raise the largest nor lower the smallest class where it is ignored.
    low = jnp.where(void, limits.max, classes) if outside == "ignore" else classes
    high = jnp.where(void, limits.min, classes) if outside == "ignore" else classes
    edges = (limits.max, limits.min) if outside == "ignore" else (VOID, VOID)

    def grow(step: jax.Array, window: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        take = (step < reach)[..., None, None]
        low, high = (_three_by_three(x, edge, f) for x, edge, f in zip(window, edges, _EXTREMES, strict=True))
        return jnp.where(take, low, window[0]), jnp.where(take, high, window[1])

    low, high = jax.lax.fori_loop(0, most, grow, (low, high))
    return low != high


_EXTREMES = (jnp.minimum, jnp.maximum)


def _three_by_three(x: jax.Array, edge: int, extreme: Any) -> jax.Array:
    height, width = x.shape[-2:]
    padded = pad_images(x, 1, jnp.asarray(edge, x.dtype))
    rows = extreme(extreme(padded[..., :height, :], padded[..., 1:-1, :]), padded[..., 2:, :])
    return extreme(extreme(rows[..., :width], rows[..., 1:-1]), rows[..., 2:])


def _near_euclidean(classes: jax.Array, reach: jax.Array, most: int, outside: Outside) -> jax.Array:
    """Where a pixel of another class has a Euclidean distance of at most `reach`, by the offsets of the disk."""
    height, width = classes.shape[-2:]
    padded = pad_images(classes, most, VOID)
    limit = (reach**2)[..., None, None]

    def add_row(i: jax.Array, hits: jax.Array) -> jax.Array:
        strip = jax.lax.dynamic_slice_in_dim(padded, i, height, axis=-2)
        for dx in range(-most, most + 1):
            near = strip[..., most + dx : most + dx + width]
            differs = (near != classes) & ((i - most) ** 2 + dx**2 <= limit)
            hits |= differs & (near != VOID) if outside == "ignore" else differs
        return hits

    return jax.lax.fori_loop(0, 2 * most + 1, add_row, jnp.zeros(classes.shape, bool))


def _scores(bands: np.ndarray) -> Scores:
    """Scores of the sums `[C, 3]` over all images."""
    both, truth, guess = np.moveaxis(bands, -1, 0)
    iou = ratio(both, truth + guess - both)
    return {"mean_boundary_iou": mean_of_defined(iou), "boundary_iou": iou.tolist()}
