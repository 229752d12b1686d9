"""Trimap scores: accuracy and IoU in a band around the boundaries of the ground truth, for many band widths at once."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxseg.core.errors import JaxsegError
from jaxseg.metrics.boundaries import (
    VOID,
    boundary_pixels,
    histogram,
    label_maps,
    mean_of_defined,
    pad_images,
    ratio,
    squared_diagonal,
)
from jaxseg.metrics.metric import Counts, Metric, Scores

Band = Literal["euclidean", "square"]
Around = Literal["boundary", "void"]
_KEY = "config.metrics.trimap"


def build(
    *,
    num_classes: int,
    widths: Sequence[int] = tuple(range(1, 41)),
    band: Band = "euclidean",
    around: Around = "boundary",
) -> Metric:
    """The metric `trimap` of a config.

    Args:
      num_classes: number of classes.
      widths: band widths in px, positive and ascending.
      band: `euclidean`: distance to the next boundary pixel `< width`; `square`: the boundary pixels dilated by a
        `width` x `width` square (NetWarp's code), odd widths only.
      around: `boundary`: pixels with one of their 4 neighbours of another class, neither being void; `void`: the void
        pixels, which outline the objects of VOC (the DeepLab papers).

    Returns:
      A metric with the table `trimap`: `width`, `pixels`, `pixel_accuracy`, `mean_accuracy`, `miou_present`; one entry
      a width.

    Raises:
      JaxsegError: an option is out of its range.
    """
    widths = tuple(int(w) for w in widths)
    if not widths or widths[0] < 1 or any(a >= b for a, b in zip(widths, widths[1:], strict=False)):
        raise JaxsegError(f"{_KEY}.widths = {widths} are not positive and ascending.")
    if band not in ("euclidean", "square"):
        raise JaxsegError(f"{_KEY}.band = {band!r} is neither 'euclidean' nor 'square'.")
    if band == "square" and not all(w % 2 for w in widths):
        raise JaxsegError(f"{_KEY}.widths = {widths}: a square around a pixel has an odd width.")
    if around not in ("boundary", "void"):
        raise JaxsegError(f"{_KEY}.around = {around!r} is neither 'boundary' nor 'void'.")

    def counts(labels: ArrayLike, outputs: ArrayLike, *, where: Any = None, size: Any = None) -> Counts:
        in_bands = trimap_counts(
            labels, outputs, num_classes=num_classes, widths=widths, where=where, size=size, band=band, around=around
        )
        return {"bands": in_bands}

    return Metric(counts, lambda sums: {"trimap": {"width": [float(w) for w in widths]} | _table(sums["bands"])})


def trimap_counts(
    labels: ArrayLike,
    predictions: ArrayLike,
    *,
    num_classes: int,
    widths: Sequence[int],
    where: ArrayLike | None = None,
    size: ArrayLike | None = None,
    band: Band = "euclidean",
    around: Around = "boundary",
) -> jax.Array:
    """Pixels in each band and class: right, in the ground truth, in the prediction.

    A pixel counts as in `confusion.confusion_counts`: its label and its prediction are class ids, and it is valid.

    Args:
      labels: integers `[*b, h, w]`, the ground truth.
      predictions: integers `[*b, h, w]`.
      num_classes: number of classes, C.
      widths: W band widths in px, positive and ascending.
      where: bool `[*b, h, w]`; None: every pixel.
      size: integers `[*b, 2]`, (height, width) of each image without padding, which is no void to be `around`; None:
        `(h, w)`. The images begin at the upper left.
      band: `euclidean` or `square`, see `build`.
      around: `boundary` or `void`, see `build`.

    Returns:
      int32 `[*b, W, C, 3]`. With labels 0 0 0 1 1 1, predictions all 0 and widths 1, 2: class 0 has (1, 1, 2) and
      (2, 2, 4), class 1 has (0, 1, 0) and (0, 2, 0).

    Raises:
      TypeError, ValueError: as `boundaries.label_maps` and `boundaries.squared_diagonal`.

    Reference: Kohli et al., Robust higher order potentials, IJCV 2009, section 4; Krähenbühl and Koltun,
    arXiv 1210.5644, figure 4; around void: DeepLab, arXiv 1606.00915, section 4.3.
    """
    truth, guess = label_maps(labels, predictions, where, num_classes=num_classes)
    squared_diagonal(size, truth.shape)
    seeds = boundary_pixels(truth) if around == "boundary" else (truth == VOID) & _inside(size, truth.shape)
    reach = widths[-1] - 1 if band == "euclidean" else widths[-1] // 2
    distance = _capped_distance(seeds, min(reach, max(truth.shape[-2:])), band)
    first = [w**2 - 1 if band == "euclidean" else w // 2 for w in widths]  # the largest in each band
    outer = jnp.searchsorted(jnp.asarray(first, jnp.int32), distance, side="left", method="compare_all")
    outer = outer.astype(jnp.int32)  # the narrowest band that holds the pixel
    counted = (truth >= 0) & (guess >= 0) & (outer < len(widths))
    # Bins (band, class, kind): 0 missed, 1 right.
    truth, guess = truth.astype(jnp.int32), guess.astype(jnp.int32)
    bins, right = len(widths) * num_classes, (truth == guess).astype(jnp.int32)
    of_truth = jnp.where(counted, ((outer * num_classes) + truth) * 2 + right, -1)
    of_guess = jnp.where(counted, (outer * num_classes) + guess, -1)
    shape = (*truth.shape[:-2], len(widths), num_classes)
    there = histogram(of_truth, 2 * bins).reshape(*shape, 2)
    found = histogram(of_guess, bins).reshape(shape)
    rings = jnp.stack([there[..., 1], there[..., 0] + there[..., 1], found], axis=-1)
    return jnp.cumsum(rings, axis=-3, dtype=jnp.int32)


def _inside(size: Any, shape: tuple[int, ...]) -> jax.Array:
    """True for the pixels of each image, False for what pads it below and on the right."""
    if size is None:
        return jnp.ones(shape, bool)
    size = jnp.asarray(size).astype(jnp.int32)[..., None, None, :]
    rows = jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 2)
    columns = jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
    return (rows < size[..., 0]) & (columns < size[..., 1])


def _capped_distance(seeds: jax.Array, reach: int, band: Band) -> jax.Array:
    """int32 distance to the next seed: squared Euclidean, or chessboard; exact up to `reach`, larger beyond it."""
    height, width = seeds.shape[-2:]
    euclidean = band == "euclidean"
    far = jnp.int32(2**29)
    padded = pad_images(seeds, reach, False)
    rows = jnp.full((*seeds.shape[:-1], width + 2 * reach), far)
    for dy in range(-reach, reach + 1):  # one fused pass over the image
        near = padded[..., reach + dy : reach + dy + height, :]
        rows = jnp.minimum(rows, jnp.where(near, dy**2 if euclidean else abs(dy), far))
    result = jnp.full(seeds.shape, far)
    for dx in range(-reach, reach + 1):
        near = rows[..., reach + dx : reach + dx + width]
        result = jnp.minimum(result, near + dx**2 if euclidean else jnp.maximum(near, abs(dx)))
    return result


def _table(bands: np.ndarray) -> Scores:
    """Columns of the table from the sums `[W, C, 3]` over all images."""
    hits, truth, found = np.moveaxis(bands, -1, 0)
    accuracy, iou = ratio(hits, truth), ratio(hits, truth + found - hits)
    return {
        "pixels": [float(n) for n in truth.sum(axis=-1)],
        "pixel_accuracy": ratio(hits.sum(axis=-1), truth.sum(axis=-1)).tolist(),
        "mean_accuracy": [mean_of_defined(row) for row in accuracy],
        "miou_present": [mean_of_defined(row) for row in iou],
    }
