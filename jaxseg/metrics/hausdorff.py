"""Hausdorff distance and its percentiles (HD95) between the boundaries of each class, per image."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxseg.core.errors import JaxsegError
from jaxseg.metrics.boundaries import (
    Outside,
    boundary_pixels,
    checked_outside,
    exact,
    histogram,
    image_and_class_means,
    label_maps,
    squared_diagonal,
)
from jaxseg.metrics.metric import Counts, Metric, Scores
from jaxseg.metrics.surfaces import OneEmpty, checked_one_empty, checked_spacing, for_classes, undefined_distances
from jaxseg.ops.distance_transform import squared_distance

Points = Literal["boundary", "region"]
_KEY = "config.metrics.hausdorff"


def build(
    *,
    num_classes: int,
    percentiles: Sequence[float] = (100, 95),
    spacing: Sequence[float] | float = 1.0,
    points: Points = "boundary",
    outside: Outside = "ignore",
    connectivity: int = 4,
    one_empty: OneEmpty = "inf",
) -> Metric:
    """The metric `hausdorff` of a config.

    Args:
      num_classes: number of classes.
      percentiles: in (0, 100]; 100 is the Hausdorff distance itself, 95 is HD95.
      spacing: distance between rows and between columns, or one number for both; the unit of the scores.
      points: `boundary`: distances between boundary pixels, as in MONAI and torchmetrics; `region`: between all pixels.
      outside: `ignore`: the edge of the image and void make no boundary; `background`: they do, as in those libraries.
      connectivity: 4 or 8, the neighbours that make a boundary pixel.
      one_empty: where a class has points in one of the maps alone: `inf`, the `diagonal` of the image, or `skip`. A
        class without points in both is always skipped.

    Returns:
      A metric with the scores `hausdorff`, and for another percentile q `hd<q>_max` (the larger of the percentiles of
      both directions: MONAI, torchmetrics) and `hd<q>_pooled` (of the distances of both directions together: medpy),
      each a mean over the defined classes of an image, then over images; and each with `_per_class`, means over images.

    Raises:
      JaxsegError: an option is out of its range.
    """
    percentiles = tuple(percentiles)
    checked_outside(outside, key=_KEY)
    checked_one_empty(one_empty, key=_KEY)
    unit, relative = checked_spacing(spacing, key=_KEY)
    if not percentiles or not all(0 < q <= 100 and exact(q).denominator <= 100 for q in percentiles):
        raise JaxsegError(f"{_KEY}.percentiles = {percentiles} are not in (0, 100] with two decimals at most.")
    if points not in ("boundary", "region"):
        raise JaxsegError(f"{_KEY}.points = {points!r} is neither 'boundary' nor 'region'.")
    if connectivity not in (4, 8):
        raise JaxsegError(f"{_KEY}.connectivity = {connectivity} is neither 4 nor 8.")

    def counts(labels: ArrayLike, outputs: ArrayLike, *, where: Any = None, size: Any = None) -> Counts:
        return hausdorff_counts(
            labels,
            outputs,
            num_classes=num_classes,
            where=where,
            size=size,
            percentiles=percentiles,
            spacing=relative,
            points=points,
            outside=outside,
            connectivity=connectivity,
        )

    def compute(rows: dict[str, np.ndarray]) -> Scores:
        return _scores(rows, percentiles=percentiles, unit=unit, relative=relative or (1.0, 1.0), one_empty=one_empty)

    return Metric(counts, compute, keep="rows")


def hausdorff_counts(
    labels: ArrayLike,
    predictions: ArrayLike,
    *,
    num_classes: int,
    where: ArrayLike | None = None,
    size: ArrayLike | None = None,
    percentiles: Sequence[float] = (100, 95),
    spacing: tuple[float, float] | None = None,
    points: Points = "boundary",
    outside: Outside = "ignore",
    connectivity: int = 4,
) -> Counts:
    """Order statistics of the squared distances between the points of each class, exact integers without `spacing`.

    The percentile q of n distances lies at the position `(n - 1) q / 100` of their sorted row, between the two at whole
    positions, which are found exactly: by bits of the squared distance, neither sorted nor rounded.

    Args:
      labels: integers `[*b, h, w]`, the ground truth.
      predictions: integers `[*b, h, w]`.
      num_classes: number of classes, C.
      where: bool `[*b, h, w]`; None: every pixel.
      size: integers `[*b, 2]`, (height, width) of each image without padding; None: `(h, w)`.
      percentiles: Q of them, in (0, 100].
      spacing: between rows and columns; None: 1, which keeps squared distances integers.
      points: `boundary` or `region`.
      outside: `ignore` or `background`, see `boundaries.boundary_pixels`.
      connectivity: 4 or 8.

    Returns:
      `points` int32 `[*b, C, 2]`, their number in ground truth and prediction; `squared` int32, or float32 with
      `spacing`, `[*b, C, 3, Q, 2]`: from ground truth to prediction, back, and both pooled; for each percentile the
      squared distance below and above (0 where one of the maps has no point); `size` int32 `[*b, 2]`. With labels
      0 1 1 0 0, predictions 0 0 0 1 0 and all pixels as points, class 1 has (2, 1) points and the squared Hausdorff
      distances 4 and 1.

    Raises:
      TypeError, ValueError: as `boundaries.label_maps` and `boundaries.squared_diagonal`.

    Reference: Huttenlocher et al., Comparing images using the Hausdorff distance, TPAMI 1993.
    """
    truth, guess = label_maps(labels, predictions, where, num_classes=num_classes)
    squared_diagonal(size, truth.shape)
    lead, (height, width) = truth.shape[:-2], truth.shape[-2:]
    size = jnp.broadcast_to(jnp.asarray((height, width) if size is None else size, jnp.int32), (*lead, 2))
    maps = [x.reshape(math.prod(lead), height, width) for x in (truth, guess)]
    if points == "boundary":
        edges = [boundary_pixels(x, outside=outside, connectivity=connectivity) for x in maps]
        maps = [jnp.where(edge, x, jnp.int16(-1)) for x, edge in zip(maps, edges, strict=True)]
    numbers = jnp.stack([histogram(x, num_classes) for x in maps], axis=-1)
    bits = (height**2 + width**2).bit_length() if spacing is None else 31

    def measure(wanted: jax.Array) -> jax.Array:
        points = jnp.stack([x == wanted[:, None, None] for x in maps], axis=1)
        squared = squared_distance(points[:, ::-1], spacing=spacing)  # from each map's points to the other's
        return _order_statistics(squared, points, percentiles, bits)

    squared = for_classes(jnp.all(numbers > 0, axis=-1), measure)
    if spacing is not None:
        squared = jax.lax.bitcast_convert_type(squared, jnp.float32)
    tail = squared.shape[1:]
    return {"points": numbers.reshape(*lead, num_classes, 2), "squared": squared.reshape(*lead, *tail), "size": size}


_NOWHERE = 2**31 - 1


def _order_statistics(squared: jax.Array, points: jax.Array, percentiles: Sequence[float], bits: int) -> jax.Array:
    """The squared distances at the whole positions below and above each percentile, as int32 keys `[b, 3, Q, 2]`.

    Args:
      squared: `[b, 2, h, w]`, int32 or float32.
      points: bool, the same shape.
      percentiles: Q of them.
      bits: how many the largest key has.
    """
    if squared.dtype != jnp.int32:
        squared = jax.lax.bitcast_convert_type(squared, jnp.int32)  # floats that are not negative sort like their bits
    keys = jnp.where(points, squared, _NOWHERE)
    number = _directions(jnp.sum(points, axis=(2, 3), dtype=jnp.int32)[..., None])
    largest = jnp.max(jnp.where(points, squared, 0), axis=(2, 3))
    largest = jnp.stack([largest[:, 0], largest[:, 1], jnp.max(largest, axis=1)], axis=1)
    parts = [q for q in percentiles if q != 100]
    found: Any = iter(())
    if parts:
        ranks = jnp.concatenate([_rank(number, q) for q in parts], axis=-1)
        found = iter(jnp.moveaxis(_by_rank(keys, ranks, bits), 2, 0))
    return jnp.stack([jnp.stack([largest] * 2, -1) if q == 100 else next(found) for q in percentiles], axis=2)


def _directions(counts: jax.Array) -> jax.Array:
    """Forward, back and both added, `[b, 3, ...]`, of the two maps' counts `[b, 2, ...]`."""
    return jnp.concatenate([counts, jnp.sum(counts, axis=1, keepdims=True, dtype=counts.dtype)], axis=1)


def _by_rank(keys: jax.Array, rank: jax.Array, bits: int) -> jax.Array:
    """The keys of rank `rank` and the next, `[b, 3, Q, 2]`, of the keys `[b, 2, h, w]` for ranks `[b, 3, Q]`."""

    def count(compare: Any, limit: jax.Array) -> jax.Array:
        """How many keys of each direction are below their limits `[b, 3, Q]`."""
        sides = []
        for own, kind in ((0, 0), (1, 1), (0, 2), (1, 2)):
            below = compare(keys[:, own, None], limit[:, kind, :, None, None])
            sides.append(jnp.sum(below, axis=(2, 3), dtype=jnp.int32))
        return jnp.stack([sides[0], sides[1], sides[2] + sides[3]], axis=1)

    def settle(i: jax.Array, low: jax.Array) -> jax.Array:
        # The key at a rank is the largest number that at most `rank` keys are smaller than.
        trial = low | (1 << (bits - 1 - i))
        return jnp.where(count(jnp.less, trial) <= rank, trial, low)

    low = jax.lax.fori_loop(0, bits, settle, jnp.zeros(rank.shape, jnp.int32))
    more = jnp.where(keys[:, :, None] > low[:, :2, :, None, None], keys[:, :, None], _NOWHERE)
    both = jnp.where(keys[:, :, None] > low[:, 2:, :, None, None], keys[:, :, None], _NOWHERE)
    above = jnp.concatenate([jnp.min(more, axis=(3, 4)), jnp.min(both, axis=(1, 3, 4))[:, None]], axis=1)
    again = (count(jnp.less_equal, low) >= rank + 2) | (above == _NOWHERE)
    return jnp.stack([low, jnp.where(again, low, above)], axis=-1)


def _rank(number: jax.Array, percentile: float) -> jax.Array:
    """`floor((number - 1) percentile / 100)`, without leaving int32."""
    part = exact(percentile) / 100
    last = jnp.maximum(number - 1, 0)
    whole, rest = last // part.denominator, last % part.denominator
    return whole * part.numerator + rest * part.numerator // part.denominator


def _scores(
    rows: dict[str, np.ndarray],
    *,
    percentiles: Sequence[float],
    unit: float,
    relative: tuple[float, float],
    one_empty: str,
) -> Scores:
    """Scores of the rows of all images, in the units of the spacing."""
    number = rows["points"].astype(np.int64)
    there, found = number[..., 0] > 0, number[..., 1] > 0
    spacing = relative[0] * unit, relative[1] * unit
    distances = np.sqrt(rows["squared"].astype(np.float64)) * unit
    totals = (number[..., 0], number[..., 1], number.sum(axis=-1))
    result: Scores = {}

    def add(name: str, values: np.ndarray) -> None:
        values = undefined_distances(values, there, found, rows["size"], spacing, one_empty)
        result[name], result[f"{name}_per_class"] = image_and_class_means(values)

    for i, percentile in enumerate(percentiles):
        kinds = [_between(distances[..., kind, i, :], total, percentile) for kind, total in enumerate(totals)]
        if percentile == 100:
            add("hausdorff", kinds[2])
        else:
            add(f"hd{percentile:g}_max", np.maximum(kinds[0], kinds[1]))
            add(f"hd{percentile:g}_pooled", kinds[2])
    return result


def _between(pair: np.ndarray, number: np.ndarray, percentile: float) -> np.ndarray:
    """The percentile between the distances below and above it, linear in its position."""
    part: Fraction = exact(percentile) / 100
    last = np.maximum(number - 1, 0)
    share = (last % part.denominator) * part.numerator % part.denominator / part.denominator
    return pair[..., 0] + (pair[..., 1] - pair[..., 0]) * share
