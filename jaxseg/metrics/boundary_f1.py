"""Boundary F1 (BF score) after Csurka et al., BMVC 2013: contours matched within a tolerance, per class and image."""

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
    boundary_pixels,
    checked_outside,
    exact,
    histogram,
    image_and_class_means,
    label_maps,
    pad_images,
    ratio,
    squared_diagonal,
    squared_tolerance,
)
from jaxseg.metrics.metric import Counts, Metric, Scores

_KEY = "config.metrics.boundary_f1"


def build(
    *,
    num_classes: int,
    tolerance_fraction: float = 0.0075,
    tolerance_px: float | None = None,
    outside: Outside = "ignore",
    connectivity: int = 4,
    both_empty: Literal["skip", "one"] = "skip",
) -> Metric:
    """The metric `boundary_f1` of a config.

    Args:
      num_classes: number of classes.
      tolerance_fraction: tolerance as a part of the image's diagonal, 0.75 % as in the paper and in SegNet.
      tolerance_px: tolerance in pixels, in place of the fraction.
      outside: `ignore`: the edge of the image and void make no boundary; `background`: they do.
      connectivity: 4 or 8, the neighbours that make a boundary pixel.
      both_empty: the score of a class of the ground truth where neither map has a boundary of it (it fills the image):
        `skip`: none; `one`: 1.

    Returns:
      A metric with the scores `boundary_f1`, `boundary_precision`, `boundary_recall` (means over the classes in the
      ground truth of an image, then over images) and `boundary_f1_per_class` (means over images).

    Raises:
      JaxsegError: an option is out of its range.
    """
    checked_outside(outside, key=_KEY)
    name, value = ("fraction", tolerance_fraction) if tolerance_px is None else ("px", tolerance_px)
    if not (math.isfinite(value) and value >= 0) or (name == "fraction" and value > 1):
        raise JaxsegError(f"{_KEY}.tolerance_{name} = {value} is negative or too large.")
    if connectivity not in (4, 8):
        raise JaxsegError(f"{_KEY}.connectivity = {connectivity} is neither 4 nor 8.")
    if both_empty not in ("skip", "one"):
        raise JaxsegError(f"{_KEY}.both_empty = {both_empty!r} is neither 'skip' nor 'one'.")

    def counts(labels: ArrayLike, outputs: ArrayLike, *, where: Any = None, size: Any = None) -> Counts:
        matched = boundary_matches(
            labels,
            outputs,
            num_classes=num_classes,
            where=where,
            size=size,
            tolerance_fraction=tolerance_fraction,
            tolerance_px=tolerance_px,
            outside=outside,
            connectivity=connectivity,
        )
        return {"matches": matched}

    return Metric(counts, lambda rows: _scores(rows["matches"], both_empty=both_empty), keep="rows")


def boundary_matches(
    labels: ArrayLike,
    predictions: ArrayLike,
    *,
    num_classes: int,
    where: ArrayLike | None = None,
    size: ArrayLike | None = None,
    tolerance_fraction: float = 0.0075,
    tolerance_px: float | None = None,
    outside: Outside = "ignore",
    connectivity: int = 4,
) -> jax.Array:
    """Boundary pixels of each class and image, and how many have one of the other map within the tolerance.

    A boundary pixel of a class is one of its pixels with a neighbour of another class. It is matched where a boundary
    pixel of the same class in the other map is at a Euclidean distance `d <= tolerance`, compared as exact integers,
    `d^2 <= floor(tolerance^2)`. The prediction is void where the ground truth is.

    Args:
      labels: integers `[*b, h, w]`, the ground truth.
      predictions: integers `[*b, h, w]`.
      num_classes: number of classes, C.
      where: bool `[*b, h, w]`; None: every pixel.
      size: integers `[*b, 2]`, (height, width) of each image without padding, whose diagonal counts; None: `(h, w)`.
      tolerance_fraction: tolerance as a part of the diagonal, in [0, 1].
      tolerance_px: tolerance in pixels in place of it.
      outside: `ignore` or `background`, see `boundaries.boundary_pixels`.
      connectivity: 4 or 8.

    Returns:
      int32 `[*b, C, 5]`: pixels of the class in the ground truth, its boundary pixels, those matched; boundary pixels
      in the prediction, those matched. With labels 0 0 1 1, predictions 0 1 1 1 and a tolerance of 0 px, class 0 has
      (2, 1, 0, 1, 0), of 1 px (2, 1, 1, 1, 1).

    Raises:
      TypeError, ValueError: as `boundaries.label_maps` and `boundaries.squared_diagonal`.

    Reference: Csurka, Larlus, Perronnin, What is a good evaluation measure for semantic segmentation?, BMVC 2013,
    section 3; SegNet, arXiv 1511.00561, section 4.1. Differences: the paper asks for `d < tolerance`.
    """
    truth, guess = label_maps(labels, predictions, where, num_classes=num_classes)
    diagonal = squared_diagonal(size, truth.shape)
    height, width = truth.shape[-2:]
    if tolerance_px is None:
        limit = squared_tolerance(tolerance_fraction, diagonal, height**2 + width**2)
        most = math.floor(exact(tolerance_fraction) ** 2 * (height**2 + width**2))
    else:
        most = min(math.floor(exact(tolerance_px) ** 2), height**2 + width**2)
        limit = jnp.full(diagonal.shape, most, jnp.int32)
    edges = [boundary_pixels(x, outside=outside, connectivity=connectivity) for x in (truth, guess)]
    there, found = (jnp.where(edge, x, jnp.int16(VOID)) for x, edge in zip((truth, guess), edges, strict=True))
    hits = _within(there, found, limit, math.isqrt(most)), _within(found, there, limit, math.isqrt(most))
    # State of a pixel: 0 inside, 1 on the boundary, 2 matched.
    parts = []
    for classes, edge, hit in zip((truth, guess), edges, hits, strict=True):
        state = edge.astype(jnp.int32) + (edge & hit).astype(jnp.int32)
        cells = jnp.where(classes >= 0, classes.astype(jnp.int32) * 3 + state, -1)
        parts.append(histogram(cells, 3 * num_classes).reshape(*classes.shape[:-2], num_classes, 3))
    columns = [jnp.sum(parts[0], axis=-1, dtype=jnp.int32)]
    for part in parts:
        columns += [part[..., 1] + part[..., 2], part[..., 2]]
    return jnp.stack(columns, axis=-1)


def _within(queries: jax.Array, targets: jax.Array, limit: jax.Array, radius: int) -> jax.Array:
    """Where a target of the same class is at a squared distance of at most `limit`, `[*b]`, below `(radius + 1)^2`."""
    height, width = queries.shape[-2:]
    padded = pad_images(targets, radius, VOID)
    limit = limit[..., None, None]

    def add_row(i: jax.Array, hits: jax.Array) -> jax.Array:
        strip = jax.lax.dynamic_slice_in_dim(padded, i, height, axis=-2)
        for dx in range(-radius, radius + 1):
            near = strip[..., radius + dx : radius + dx + width]
            hits |= (near == queries) & ((i - radius) ** 2 + dx**2 <= limit)
        return hits

    return jax.lax.fori_loop(0, 2 * radius + 1, add_row, jnp.zeros(queries.shape, bool)) & (queries != VOID)


def _scores(matches: np.ndarray, *, both_empty: str) -> Scores:
    """Scores of the rows `[n, C, 5]` of all images."""
    pixels, truth, recalled, found, precise = np.moveaxis(matches.astype(np.int64), -1, 0)
    present = pixels > 0
    precision, recall = ratio(precise, found), ratio(recalled, truth)
    with np.errstate(invalid="ignore"):
        f1 = np.where(recalled * precise > 0, 2 * precision * recall / (precision + recall), 0.0)
    empty = (truth == 0) & (found == 0)
    f1 = np.where(empty, 1.0 if both_empty == "one" else np.nan, f1)
    f1, precision, recall = (np.where(present, x, np.nan) for x in (f1, precision, recall))
    mean, per_class = image_and_class_means(f1)
    return {
        "boundary_f1": mean,
        "boundary_precision": image_and_class_means(precision)[0],
        "boundary_recall": image_and_class_means(recall)[0],
        "boundary_f1_per_class": per_class,
    }
