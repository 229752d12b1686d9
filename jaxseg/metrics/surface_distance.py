"""Average surface distances and surface Dice at a tolerance between the boundaries of each class, per image."""

import math
from collections.abc import Sequence
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
from jaxseg.metrics.surfaces import (
    FRACTION_BITS,
    OneEmpty,
    checked_one_empty,
    checked_spacing,
    exact_sum,
    fixed_point,
    for_classes,
    sum_of_parts,
    surfels,
    undefined_distances,
)
from jaxseg.ops.distance_transform import squared_distance

Elements = Literal["pixels", "surfels"]
_KEY = "config.metrics.surface_distance"


def build(
    *,
    num_classes: int,
    elements: Elements = "pixels",
    tolerances: Sequence[float] = (1.0,),
    spacing: Sequence[float] | float = 1.0,
    outside: Outside = "ignore",
    connectivity: int = 4,
    one_empty: OneEmpty = "inf",
) -> Metric:
    """The metric `surface_distance` of a config.

    Args:
      num_classes: number of classes.
      elements: `pixels`: the surface is the boundary pixels, each of weight 1 (MONAI, medpy); `surfels`: it runs
        between pixels, each corner weighted by the contour's length there (DeepMind's surface-distance).
      tolerances: of the surface Dice, in the units of the spacing.
      spacing: distance between rows and between columns, or one number for both; the unit of the scores.
      outside: `ignore`: the edge of the image and void make no boundary; `background`: they do, as in those libraries.
      connectivity: 4 or 8, the neighbours that make a boundary pixel.
      one_empty: the distance of a class with a surface in one of the maps alone: `inf`, the `diagonal` of the image, or
        `skip`; its surface Dice is 0. A class without a surface in both is always skipped.

    Returns:
      A metric with the scores `asd_truth_to_prediction`, `asd_prediction_to_truth` (directed averages), `assd_pooled`
      (average over both surfaces together: MONAI), `assd_mean` (mean of the directed ones: medpy), and
      `surface_dice_<tolerance>`; each a mean over the defined classes of an image, then over images, and each with
      `_per_class`, means over images.

    Raises:
      JaxsegError: an option is out of its range.
    """
    tolerances = tuple(float(t) for t in tolerances)
    checked_outside(outside, key=_KEY)
    checked_one_empty(one_empty, key=_KEY)
    unit, relative = checked_spacing(spacing, key=_KEY)
    if elements not in ("pixels", "surfels"):
        raise JaxsegError(f"{_KEY}.elements = {elements!r} is neither 'pixels' nor 'surfels'.")
    if not all(0 <= t < math.inf for t in tolerances):
        raise JaxsegError(f"{_KEY}.tolerances = {tolerances} are negative or not finite.")
    if connectivity not in (4, 8):
        raise JaxsegError(f"{_KEY}.connectivity = {connectivity} is neither 4 nor 8.")

    def counts(labels: ArrayLike, outputs: ArrayLike, *, where: Any = None, size: Any = None) -> Counts:
        return surface_counts(
            labels,
            outputs,
            num_classes=num_classes,
            where=where,
            size=size,
            elements=elements,
            squared_tolerances=[float((exact(t) / exact(unit)) ** 2) for t in tolerances],
            spacing=relative,
            outside=outside,
            connectivity=connectivity,
        )

    def compute(rows: dict[str, np.ndarray]) -> Scores:
        return _scores(rows, tolerances=tolerances, unit=unit, relative=relative or (1.0, 1.0), one_empty=one_empty)

    return Metric(counts, compute, keep="rows")


def surface_counts(
    labels: ArrayLike,
    predictions: ArrayLike,
    *,
    num_classes: int,
    where: ArrayLike | None = None,
    size: ArrayLike | None = None,
    elements: Elements = "pixels",
    squared_tolerances: Sequence[float] = (1.0,),
    spacing: tuple[float, float] | None = None,
    outside: Outside = "ignore",
    connectivity: int = 4,
) -> Counts:
    """Surface elements of each class by kind, the sum of their distances to the other map's surface, those within.

    `sum over x in S of d(x, S')` as exact sums of fixed-point numbers, each distance within 2^-23 of the root.

    Args:
      labels: integers `[*b, h, w]`, the ground truth.
      predictions: integers `[*b, h, w]`.
      num_classes: number of classes, C.
      where: bool `[*b, h, w]`; None: every pixel.
      size: integers `[*b, 2]`, (height, width) of each image without padding; None: `(h, w)`.
      elements: `pixels`, K = 1 kind; `surfels`, K = 3: horizontal, vertical, diagonal (`surfaces.surfels`).
      squared_tolerances: T squared distances, in units of the smaller spacing.
      spacing: between rows and columns; None: 1, which keeps squared distances integers.
      outside: `ignore` or `background`, see `boundaries.boundary_pixels` and `surfaces.surfels`.
      connectivity: 4 or 8.

    Returns:
      int32, the axis of 2 being from the ground truth to the prediction and back: `elements` `[*b, C, 2, K]`, their
      number; `sums` `[*b, C, 2, K, 2, 4]`, parts of the sums of the distances (whole, and behind the point); `within`
      `[*b, C, 2, K, T]`, elements with `d^2 <= squared_tolerance`; `size` `[*b, 2]`.

    Raises:
      TypeError, ValueError: as `boundaries.label_maps` and `boundaries.squared_diagonal`.

    Reference: Nikolov et al., arXiv 1809.04430, section on the surface Dice; Heimann et al., TMI 2009 (ASSD).
    """
    truth, guess = label_maps(labels, predictions, where, num_classes=num_classes)
    squared_diagonal(size, truth.shape)
    lead, (height, width) = truth.shape[:-2], truth.shape[-2:]
    size = jnp.broadcast_to(jnp.asarray((height, width) if size is None else size, jnp.int32), (*lead, 2))
    maps = [x.reshape(math.prod(lead), height, width) for x in (truth, guess)]
    if elements == "pixels":
        edges = [boundary_pixels(x, outside=outside, connectivity=connectivity) for x in maps]
        maps = [jnp.where(edge, x, jnp.int16(-1)) for x, edge in zip(maps, edges, strict=True)]
    present = jnp.stack([histogram(x, num_classes) for x in maps], axis=-1) > 0

    def measure(wanted: jax.Array) -> Counts:
        if elements == "pixels":
            kinds = jnp.stack([x == wanted[:, None, None] for x in maps], axis=1)[None].astype(jnp.int32)
        else:
            kinds = jnp.stack([surfels(x, wanted, outside=outside) for x in maps], axis=2)
        others = jnp.any(kinds > 0, axis=0)[:, ::-1]
        return _measured(kinds, squared_distance(others, spacing=spacing), squared_tolerances)

    found = for_classes(jnp.any(present, axis=-1), measure)
    found = {name: x.reshape(*lead, *x.shape[1:]) for name, x in found.items()}
    return {**found, "size": size}


def _measured(kinds: jax.Array, squared: jax.Array, squared_tolerances: Sequence[float]) -> Counts:
    """What `surface_counts` returns for the elements `kinds` `[K, b, 2, h, w]` and their distances `[b, 2, h, w]`."""
    on = jnp.any(kinds > 0, axis=0)
    parts = [jnp.where(on, x, 0) for x in fixed_point(jnp.where(on, squared, 0))]
    sums = jnp.stack([exact_sum(kinds * x) for x in parts], axis=-2)
    within = []
    for limit in squared_tolerances:
        if squared.dtype == jnp.int32:
            close = squared <= min(math.floor(limit), 2**30 - 1)
        else:
            close = squared <= min(limit * (1 + 2.0**-20), 2.0**30)  # float32 squares are a few units off
        within.append(jnp.sum(jnp.where(close, kinds, 0), axis=(-2, -1), dtype=jnp.int32))
    numbers = jnp.sum(kinds, axis=(-2, -1), dtype=jnp.int32)
    columns = jnp.stack(within, axis=-1) if within else jnp.zeros((*numbers.shape, 0), jnp.int32)
    return {
        "elements": jnp.moveaxis(numbers, 0, 2),
        "sums": jnp.moveaxis(sums, 0, 2),
        "within": jnp.moveaxis(columns, 0, 2),
    }


def _scores(
    rows: dict[str, np.ndarray],
    *,
    tolerances: Sequence[float],
    unit: float,
    relative: tuple[float, float],
    one_empty: str,
) -> Scores:
    """Scores of the rows of all images, in the units of the spacing."""
    spacing = relative[0] * unit, relative[1] * unit
    numbers = rows["elements"].astype(np.int64)
    # The length of a horizontal element is the distance between columns; a diagonal one cuts a corner at both middles.
    lengths = np.asarray([1.0] if numbers.shape[-1] == 1 else [spacing[1], spacing[0], math.hypot(*spacing) / 2])
    parts = sum_of_parts(rows["sums"])
    total = ((parts[..., 0] << FRACTION_BITS) + parts[..., 1]) / 2.0**FRACTION_BITS * unit  # [n, C, 2, K]
    area, moment = (numbers * lengths).sum(axis=-1), (total * lengths).sum(axis=-1)  # [n, C, 2]
    there, found = area[..., 0] > 0, area[..., 1] > 0
    result: Scores = {}

    def add(name: str, values: np.ndarray) -> None:
        result[name], result[f"{name}_per_class"] = image_and_class_means(values)

    with np.errstate(invalid="ignore", divide="ignore"):
        directed, pooled = moment / area, moment.sum(axis=-1) / area.sum(axis=-1)
        close = (rows["within"].astype(np.int64) * lengths[:, None]).sum(axis=(-3, -2)) / area.sum(axis=-1)[..., None]
    for name, values in (
        ("asd_truth_to_prediction", directed[..., 0]),
        ("asd_prediction_to_truth", directed[..., 1]),
        ("assd_pooled", pooled),
        ("assd_mean", directed.mean(axis=-1)),
    ):
        add(name, undefined_distances(values, there, found, rows["size"], spacing, one_empty))
    for i, tolerance in enumerate(tolerances):
        dice = np.where(there & found, close[..., i], 0.0)
        add(f"surface_dice_{tolerance:g}", np.where(there | found, dice, np.nan))
    return result
