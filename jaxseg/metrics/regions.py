"""Regions of images: connected components of classes, how they overlap, which prediction finds which truth."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from scipy import ndimage

from jaxseg.metrics.confidence import BITS

FALSE, TRUE, IGNORED = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Regions:
    """Regions of one image; those of a segment map do not overlap, those of masks may.

    Attributes:
      classes: integers `[n]`, the class of each.
      scores: float64 `[n]`, larger is surer; of no meaning for the ground truth.
      ids: integers `[h, w]`, k in the pixels of region k, -1 elsewhere; or None.
      masks: bool `[n, h, w]`; or None.
      crowd: bool `[n]`, ground truth that is not to be found nor punished: a group of objects, a difficult one.
    """

    classes: np.ndarray
    scores: np.ndarray
    ids: np.ndarray | None = None
    masks: np.ndarray | None = None
    crowd: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = len(self.classes)
        if (self.ids is None) == (self.masks is None):
            raise ValueError("regions are given by ids or by masks, one of the two")
        if len(self.scores) != count or (self.crowd is not None and len(self.crowd) != count):
            raise ValueError(f"{count} classes, {len(self.scores)} scores: each region has one of each")
        if not np.all(np.isfinite(self.scores)):
            raise ValueError("scores are not finite")
        if self.masks is not None and (self.masks.dtype != np.bool_ or len(self.masks) != count):
            raise ValueError(f"masks are bool [{count}, h, w], not {self.masks.dtype} {self.masks.shape}")
        if self.ids is not None and self.ids.size and self.ids.max() >= count:
            raise ValueError(f"ids hold {self.ids.max()}, but there are {count} regions")


def component_regions(
    labels: np.ndarray, confidence: np.ndarray | None = None, *, where: np.ndarray | None = None, connectivity: int = 8
) -> Regions:
    """The connected components of each class of a label map.

    Args:
      labels: integers `[h, w]`; negative values belong to no region.
      confidence: integers `[h, w]` in units of 2^-24; a region's score is their mean. None: all scores are 1.
      where: bool `[h, w]`; what is outside belongs to no region and separates.
      connectivity: 4 or 8 neighbours.

    Returns:
      Regions by class, then by their first pixel.
    """
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity = {connectivity} is not 4 or 8")
    inside = labels >= 0 if where is None else where & (labels >= 0)
    structure = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
    ids = np.full(labels.shape, -1, np.int64)
    classes: list[int] = []
    for value in np.unique(labels[inside]):
        found, count = ndimage.label(inside & (labels == value), structure)
        ids[found > 0] = found[found > 0] + (len(classes) - 1)
        classes += [int(value)] * count
    scores = np.ones(len(classes))
    if confidence is not None and classes:
        member = ids >= 0
        sums = np.zeros(len(classes), np.int64)
        np.add.at(sums, ids[member], confidence[member].astype(np.int64))
        scores = sums / np.bincount(ids[member], minlength=len(classes)) / (1 << BITS)
    return Regions(np.asarray(classes, np.int64), scores, ids=ids)


def overlaps(
    predicted: Regions, truth: Regions, *, where: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Areas in pixels, exact.

    Args:
      predicted: n regions.
      truth: m regions of the same image.
      where: bool `[h, w]`; pixels outside count nowhere.

    Returns:
      int64: intersections `[n, m]`, areas of the predicted regions `[n]`, of the true ones `[m]`.
    """
    n, m = len(predicted.classes), len(truth.classes)
    if predicted.ids is not None and truth.ids is not None:
        p, t = predicted.ids, truth.ids
        if p.shape != t.shape:
            raise ValueError(f"predicted regions {p.shape} and true ones {t.shape} are of images of different size")
        p, t = (p.ravel(), t.ravel()) if where is None else (p[where], t[where])
        # A confusion matrix of ids; the last row and column take the pixels of no region.
        cells = np.where(p < 0, n, p).astype(np.int64) * (m + 1) + np.where(t < 0, m, t)
        counts = np.bincount(cells, minlength=(n + 1) * (m + 1)).reshape(n + 1, m + 1)
        return counts[:n, :m], counts[:n].sum(axis=1), counts[:, :m].sum(axis=0)
    p, t = _flat_masks(predicted, where), _flat_masks(truth, where)
    if p.shape[1] != t.shape[1]:
        raise ValueError("predicted and true regions are of images of different size")
    # float64 sums of ones are exact below 2^53, and its matrix product is quick.
    product = p.astype(np.float64) @ t.astype(np.float64).T
    return product.astype(np.int64), p.sum(axis=1, dtype=np.int64), t.sum(axis=1, dtype=np.int64)


def region_areas(regions: Regions, where: np.ndarray | None = None) -> np.ndarray:
    """int64 `[n]`: pixels of each region in `where`, bool `[h, w]`."""
    if regions.ids is None:
        return _flat_masks(regions, where).sum(axis=1, dtype=np.int64)
    ids = regions.ids.ravel() if where is None else regions.ids[where]
    return np.bincount(ids[ids >= 0], minlength=len(regions.classes))


def match(
    predicted: Regions, truth: Regions, thresholds: Sequence[float], *, where: np.ndarray | None = None
) -> np.ndarray:
    """Which predicted regions are hits, at each threshold of the intersection over union (IoU).

    In the order of falling scores, a region takes the true one of its class with the largest IoU that no other has
    taken; it is a hit where that IoU is at least the threshold. Without one, it is ignored where it overlaps a crowd,
    with the intersection divided by its own area, by the threshold (COCO). The comparison is one of integers. A region
    without a pixel in `where` is ignored.

    Args:
      predicted: n regions.
      truth: the true regions of the same image.
      thresholds: T values in (0, 1], to six decimals.
      where: bool `[h, w]`; pixels outside count nowhere.

    Returns:
      uint8 `[n, T]`: 0 no hit, 1 a hit, 2 ignored.

    Reference: Lin et al., Microsoft COCO, arXiv 1405.0312, and the definition of its evaluation. The VOC kit differs: a
    region whose best true one is taken is no hit, also where it would reach the threshold with another; segments that
    do not overlap each other and thresholds of 0.5 and more leave no such second choice.
    """
    inter, areas, true_areas = overlaps(predicted, truth, where=where)
    crowd = np.zeros(len(truth.classes), bool) if truth.crowd is None else np.asarray(truth.crowd, bool)
    same = predicted.classes[:, None] == truth.classes[None]
    union = np.where(crowd, areas[:, None], areas[:, None] + true_areas - inter)
    iou = np.where(same & (inter > 0), inter / np.maximum(union, 1), 0.0)
    result = np.zeros((len(predicted.classes), len(thresholds)), np.uint8)
    result[areas == 0] = IGNORED
    order = np.argsort(-predicted.scores, kind="stable")
    for column, threshold in enumerate(thresholds):
        least = Fraction(threshold).limit_denominator(10**6)
        enough = same & (inter > 0) & (inter * least.denominator >= union * least.numerator)
        free = ~crowd
        for row in order:
            candidates = enough[row] & free
            if candidates.any():
                taken = np.argmax(np.where(candidates, iou[row], -1.0))
                result[row, column], free[taken] = TRUE, False
            elif np.any(enough[row] & crowd):
                result[row, column] = IGNORED
    return result


def _flat_masks(regions: Regions, where: np.ndarray | None) -> np.ndarray:
    """bool `[n, pixels]`."""
    if regions.masks is not None:
        masks = regions.masks
    else:
        assert regions.ids is not None
        masks = regions.ids[None] == np.arange(len(regions.classes))[:, None, None]
    return masks[:, np.ones(masks.shape[1:], bool) if where is None else where]
