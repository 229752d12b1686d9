"""Average precision of regions, ranked by score, over thresholds of the intersection over union."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxseg.core.errors import JaxsegError
from jaxseg.core.masks import valid_mask
from jaxseg.metrics.confidence import checked_probabilities, fixed_point_confidence
from jaxseg.metrics.metric import Counts, Metric, Scores
from jaxseg.metrics.regions import IGNORED, TRUE, Regions, component_regions, match, region_areas
from jaxseg.ops.argmax import class_argmax

Interpolation = Literal["coco", "voc", "11_point", "none"]
INTERPOLATIONS = ("coco", "voc", "11_point", "none")
COCO_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
_KEY = "config.evaluate.metrics.average_precision"


def build(
    *,
    num_classes: int,
    thresholds: Sequence[float] = COCO_THRESHOLDS,
    interpolation: Interpolation = "coco",
    connectivity: int = 8,
) -> Metric:
    """The metric `average_precision` of a semantic segmentation.

    Regions are the connected components of each class, of the prediction with their mean probability as score and of
    the labels; they are found on the host, which needs the maps of whole batches there. Pixels outside `where` belong
    to no region. With regions of one's own, for example instances: `match_images` and `precision_scores`.

    Args:
      num_classes: number of classes.
      thresholds: of the IoU, in (0, 1].
      interpolation: see `average_precision`.
      connectivity: 4 or 8, what connects pixels.

    Raises:
      JaxsegError: an option is out of its range.
    """
    thresholds = tuple(float(t) for t in thresholds)
    if not thresholds or not all(0 < t <= 1 for t in thresholds):
        raise JaxsegError(f"{_KEY}.thresholds = {thresholds} are not numbers in (0, 1].")
    if interpolation not in INTERPOLATIONS:
        raise JaxsegError(f"{_KEY}.interpolation = {interpolation!r} is not one of {', '.join(INTERPOLATIONS)}.")
    if connectivity not in (4, 8):
        raise JaxsegError(f"{_KEY}.connectivity = {connectivity} is not 4 or 8.")

    def counts(labels: ArrayLike, outputs: ArrayLike, *, where: ArrayLike | None = None, size: Any = None) -> Counts:
        labels, probabilities, where = checked_probabilities(labels, outputs, where)
        if probabilities.shape[-1] != num_classes:
            raise ValueError(f"probabilities {probabilities.shape} are not [b, h, w, {num_classes}]")
        valid = where & valid_mask(labels, num_classes=num_classes)
        return {
            "labels": jnp.where(valid, labels.astype(jnp.int32), -1),
            "predictions": jnp.where(valid, class_argmax(probabilities), -1),
            "confidence": fixed_point_confidence(probabilities),
        }

    def on_host(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        images = zip(rows["predictions"], rows["confidence"], rows["labels"], strict=True)
        pairs = (
            (component_regions(p, c, connectivity=connectivity), component_regions(y, connectivity=connectivity))
            for p, c, y in images
        )
        return match_images(pairs, num_classes=num_classes, thresholds=thresholds)

    def compute(rows: dict[str, np.ndarray]) -> Scores:
        return precision_scores(rows, thresholds=thresholds, interpolation=interpolation)

    return Metric(counts, compute, keep="rows", needs="probabilities", on_host=on_host)


def match_images(
    images: Iterable[tuple[Regions, Regions] | tuple[Regions, Regions, np.ndarray | None]],
    *,
    num_classes: int,
    thresholds: Sequence[float] = COCO_THRESHOLDS,
) -> dict[str, np.ndarray]:
    """What average precision needs of some images; of several parts, the arrays are concatenated.

    Args:
      images: predicted regions, true regions, and optionally bool `where` `[h, w]` of each image.
      num_classes: number of classes, C.
      thresholds: of the IoU, T of them.

    Returns:
      `classes` int64 `[n]`, `scores` float64 `[n]`, `found` uint8 `[n, T]` (see `match`) of the predicted regions of
      all images, and `truths` int64 `[images, C]`, true regions that are no crowd and have a pixel in `where`.
    """
    classes, scores = [np.zeros(0, np.int64)], [np.zeros(0)]
    found, truths = [np.zeros((0, len(thresholds)), np.uint8)], [np.zeros((0, num_classes), np.int64)]
    for predicted, truth, *rest in images:
        where = rest[0] if rest else None
        for regions in (predicted, truth):
            if len(regions.classes) and not 0 <= regions.classes.min() <= regions.classes.max() < num_classes:
                raise ValueError(f"a region's class is not in 0..{num_classes - 1}")
        areas = region_areas(truth, where)
        counted = areas > 0 if truth.crowd is None else (areas > 0) & ~np.asarray(truth.crowd, bool)
        classes.append(np.asarray(predicted.classes, np.int64))
        scores.append(np.asarray(predicted.scores, np.float64))
        found.append(match(predicted, truth, thresholds, where=where))
        truths.append(np.bincount(truth.classes[counted], minlength=num_classes)[None])
    parts: dict[str, list[np.ndarray]] = {"classes": classes, "scores": scores, "found": found, "truths": truths}
    return {name: np.concatenate(values) for name, values in parts.items()}


def average_precision(
    scores: ArrayLike, found: ArrayLike, truths: int, *, interpolation: Interpolation = "coco"
) -> float:
    """Average precision of one class at one threshold.

    Going down the ranking, `precision = hits / predictions`, `recall = hits / truths`. Predictions of equal score are
    one step, so that their order does not matter. With `P(r)` the largest precision at a recall of at least r, or 0:

    - `coco`: mean of `P(r)` over r = 0, 0.01, ..., 1.
    - `voc`: the area under P (PASCAL VOC since 2010).
    - `11_point`: mean of `P(r)` over r = 0, 0.1, ..., 1 (PASCAL VOC until 2009).
    - `none`: `sum_n (recall_n - recall_(n-1)) precision_n`, without P (scikit-learn).

    Args:
      scores: `[n]`, larger is surer.
      found: integers `[n]`: 1 a hit, 0 none, 2 not counted.
      truths: number of true regions.
      interpolation: see above.

    Returns:
      The average precision, NaN where `truths` is 0. Scores (0.9, 0.8, 0.7), found (1, 0, 1), 2 truths: voc 5/6.

    Raises:
      JaxsegError: an unknown interpolation.

    Differences: recalls are compared as fractions, pycocotools compares them as rounded floats.

    Reference: Everingham et al., The PASCAL visual object classes challenge, section 4.2; Lin et al., arXiv 1405.0312.
    """
    if interpolation not in INTERPOLATIONS:
        raise JaxsegError(f"interpolation = {interpolation!r} is not one of {', '.join(INTERPOLATIONS)}.")
    if truths == 0:
        return math.nan
    counted = np.asarray(found) != IGNORED
    ranked, hit = np.asarray(scores)[counted], np.asarray(found)[counted] == TRUE
    order = np.argsort(-ranked, kind="stable")
    hits, ranked = np.cumsum(hit[order]), ranked[order]
    last = np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)]
    hits, predictions = hits[last], np.arange(1, len(ranked) + 1)[last]
    precision = hits / predictions
    if interpolation == "none":
        return float(np.diff(hits, prepend=0) @ precision / truths)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    if interpolation == "voc":
        return float(np.diff(hits, prepend=0) @ best / truths)
    steps = 100 if interpolation == "coco" else 10
    least = -(-np.arange(steps + 1) * truths // steps)  # hits that make a recall of k / steps
    return float(np.append(best, 0.0)[np.searchsorted(hits, least)].mean())


def precision_scores(
    rows: dict[str, np.ndarray],
    *,
    thresholds: Sequence[float] = COCO_THRESHOLDS,
    interpolation: Interpolation = "coco",
) -> Scores:
    """The scores of what `match_images` returned.

    Args:
      rows: `classes`, `scores`, `found`, `truths`.
      thresholds: of the IoU, those of `match_images`.
      interpolation: see `average_precision`.

    Returns:
      `mean_average_precision`: mean over thresholds and classes with true regions; `mean_average_precision_50` and
      `_75` where these are among the thresholds; `average_precision`: a list, means over the thresholds, NaN for a
      class without a true region; `average_precision_by_threshold`: a table of threshold and mean over the classes.
    """
    truths = rows["truths"].sum(axis=0)
    table = np.full((len(truths), len(thresholds)), np.nan)
    for c in np.flatnonzero(truths):
        own = rows["classes"] == c
        for column in range(len(thresholds)):
            table[c, column] = average_precision(
                rows["scores"][own], rows["found"][own, column], int(truths[c]), interpolation=interpolation
            )
    known = table[truths > 0]
    by_threshold = known.mean(axis=0).tolist() if len(known) else [math.nan] * len(thresholds)
    result: Scores = {"mean_average_precision": float(known.mean()) if known.size else math.nan}
    for threshold, value in zip(thresholds, by_threshold, strict=True):
        if threshold in (0.5, 0.75):
            result[f"mean_average_precision_{round(100 * threshold)}"] = value
    result["average_precision"] = table.mean(axis=1).tolist()
    columns = {"threshold": list(map(float, thresholds)), "mean_average_precision": by_threshold}
    return result | {"average_precision_by_threshold": columns}
