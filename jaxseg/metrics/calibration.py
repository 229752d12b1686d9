"""Calibration errors and the reliability diagram: how far the largest probability is from the share of hits."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxseg.core.errors import JaxsegError
from jaxseg.core.masks import valid_mask
from jaxseg.metrics.confidence import BITS, checked_probabilities, fixed_point_confidence
from jaxseg.metrics.metric import Counts, Metric, Scores
from jaxseg.ops.argmax import class_argmax

_HALF = BITS // 2
_CHUNK = 1 << (31 - _HALF - 1)  # pixels whose halves of 12 bits add up to less than 2^31
MAX_BINS = 127


def build(*, num_classes: int, bins: int = 15) -> Metric:
    """The metric `calibration`: `calibration_scores` of all pixels.

    Args:
      num_classes: number of classes.
      bins: bins of equal width, 1..127.

    Raises:
      JaxsegError: bins out of range.
    """
    if not 1 <= bins <= MAX_BINS or bins != int(bins):
        raise JaxsegError(f"config.evaluate.metrics.calibration.bins = {bins} is not in 1..{MAX_BINS}.")

    def counts(labels: ArrayLike, outputs: ArrayLike, *, where: ArrayLike | None = None, size: Any = None) -> Counts:
        if jnp.ndim(outputs) < 1 or jnp.shape(outputs)[-1] != num_classes:
            raise ValueError(f"probabilities {jnp.shape(outputs)} are not [b, h, w, {num_classes}]")
        return calibration_counts(labels, outputs, bins=int(bins), where=where)

    def sum_of_chunks(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: value.sum(axis=1, dtype=np.int64) for name, value in rows.items()}

    return Metric(counts, _scores_of_sums, needs="probabilities", on_host=sum_of_chunks)


def calibration_counts(
    labels: ArrayLike, probabilities: ArrayLike, *, bins: int = 15, where: ArrayLike | None = None
) -> dict[str, jax.Array]:
    """What a reliability diagram needs of each image, in exact integers.

    The confidence of a pixel, its largest probability, is rounded to `q 2^-24`. It falls into bin m of M where
    `m / M < confidence <= (m + 1) / M` (0 into the first). A pixel hits where the class of that probability, the first
    of equals, is its label. Pixels whose label is no class id are not counted; a confidence of NaN counts as 0.

    Args:
      labels: integers `[b, h, w]`.
      probabilities: float32 `[b, h, w, c]`, 0..1.
      bins: M, number of bins, 1..127.
      where: bool `[b, h, w]`; None: every pixel.

    Returns:
      int32 `[b, k, bins]` each, for k parts of the image of fewer than 2^18 pixels: `pixels`, `hits`, and the sums of
      `q`'s upper and lower 12 bits `high`, `low`, so that `sum q = 4096 high + low`.

    Raises:
      TypeError: labels are not integers, or `where` is not bool, or probabilities are not floats.
      ValueError: shapes that do not fit, values outside 0..1 (where they can be looked at), or bins out of range.

    Reference: Guo et al., On calibration of modern neural networks, arXiv 1706.04599, equations 2 to 5.
    """
    labels, probabilities, where = checked_probabilities(labels, probabilities, where)
    if not 1 <= bins <= MAX_BINS:
        raise ValueError(f"bins = {bins} is not in 1..{MAX_BINS}")
    valid = where & valid_mask(labels, num_classes=probabilities.shape[-1])
    hit = class_argmax(probabilities) == labels
    q = fixed_point_confidence(probabilities)
    # An arithmetic shift rounds down: ceil(q M / 2^24) - 1, in integers, whatever the confidence's last bit.
    place = jnp.maximum((q * bins - 1) >> BITS, 0)
    cell = jnp.where(valid, 2 * place + hit.astype(jnp.int32), 2 * bins)
    cell, q = _in_chunks(cell, 2 * bins), _in_chunks(q, 0)
    sums = jax.lax.platform_dependent(
        cell, q, cpu=lambda cell, q: _by_scatter(cell, q, 2 * bins), default=lambda c, q: _by_mask(c, q, 2 * bins)
    )
    by_cell = sums.reshape(*sums.shape[:-1], bins, 2)
    pixels, high, low = (by_cell[i].sum(axis=-1, dtype=jnp.int32) for i in range(3))
    return {"pixels": pixels, "hits": by_cell[0, ..., 1], "high": high, "low": low}


def calibration_scores(pixels: ArrayLike, hits: ArrayLike, confidence: ArrayLike) -> dict[str, Any]:
    """Calibration errors from the sums of each bin.

    With n_m pixels in bin m, `acc_m = hits_m / n_m`, `conf_m` their mean confidence, `N = sum_m n_m`:

    - `expected_calibration_error`: `sum_m n_m / N |acc_m - conf_m|`.
    - `maximum_calibration_error`: `max_m |acc_m - conf_m|`, over bins with pixels.
    - `rms_calibration_error`: `sqrt(sum_m n_m / N (acc_m - conf_m)^2)`.
    - `reliability`: a table with `pixels`, `accuracy` and `confidence` of each bin; NaN where a bin is empty.

    Args:
      pixels: integers `[bins]`, pixels a bin.
      hits: integers `[bins]`, those of them whose class is right.
      confidence: `[bins]`, sums of the confidences.

    Returns:
      The dictionary, NaN without a pixel. 4 pixels of confidence 0.9, 3 of them right, give an expected error of 0.15.

    Reference: Guo et al., arXiv 1706.04599, equations 3 and 5; the root mean square as Nixon et al., arXiv 1904.01685.
    """
    pixels, hits, confidence = (np.asarray(x, np.float64) for x in (pixels, hits, confidence))
    filled = np.maximum(pixels, 1)
    accuracy, mean = (np.where(pixels > 0, x / filled, np.nan) for x in (hits, confidence))
    some, total = pixels > 0, pixels.sum()
    gap, share = np.abs(hits - confidence)[some] / pixels[some], pixels[some] / max(total, 1)
    return {
        "expected_calibration_error": float(share @ gap) if total else math.nan,
        "maximum_calibration_error": float(gap.max()) if total else math.nan,
        "rms_calibration_error": math.sqrt(share @ gap**2) if total else math.nan,
        "reliability": {"pixels": pixels.tolist(), "accuracy": accuracy.tolist(), "confidence": mean.tolist()},
    }


def calibration_numpy(
    labels: np.ndarray, probabilities: np.ndarray, *, bins: int = 15, where: np.ndarray | None = None
) -> dict[str, Any]:
    """The NumPy twin: `calibration_scores` in float64 from the confidences as they are, pixel by pixel."""
    where = np.ones(labels.shape, bool) if where is None else np.asarray(where)
    pixels, hits, confidence = np.zeros(bins), np.zeros(bins), np.zeros(bins)
    for index in zip(*np.nonzero(where & (labels >= 0) & (labels < probabilities.shape[-1])), strict=True):
        values = probabilities[index].astype(np.float64)
        place = min(max(math.ceil(values.max() * bins) - 1, 0), bins - 1)
        pixels[place] += 1
        hits[place] += np.argmax(values) == labels[index]
        confidence[place] += values.max()
    return calibration_scores(pixels, hits, confidence)


def _scores_of_sums(sums: dict[str, np.ndarray]) -> Scores:
    # Below 2^53 in units of 2^-24 the division is exact; beyond, off by one unit in 10^16.
    confidence = [
        ((int(high) << _HALF) + int(low)) / (1 << BITS) for high, low in zip(sums["high"], sums["low"], strict=True)
    ]
    return calibration_scores(sums["pixels"], sums["hits"], np.asarray(confidence))


def _in_chunks(values: jax.Array, filler: int) -> jax.Array:
    """`[b, h, w]` as `[b, k, n]` with n below 2^18, filled up with `filler`."""
    rows, total = values.shape[0], math.prod(values.shape[1:])
    chunks = max(1, -(-total // _CHUNK))
    length = max(1, -(-total // chunks))
    flat = jnp.pad(values.reshape(rows, total), ((0, 0), (0, chunks * length - total)), constant_values=filler)
    return flat.reshape(rows, chunks, length)


def _by_scatter(cell: jax.Array, q: jax.Array, cells: int) -> jax.Array:
    """int32 `[3, b, k, cells]`: ones, upper and lower halves of q added up for each cell below `cells`."""

    def add(cell: jax.Array, values: jax.Array | int) -> jax.Array:
        return jnp.zeros(cells + 1, jnp.int32).at[cell].add(values, mode="promise_in_bounds")[:-1]

    over = jax.vmap(jax.vmap(add))
    return jnp.stack([over(cell, jnp.ones_like(q)), over(cell, q >> _HALF), over(cell, q & ((1 << _HALF) - 1))])


def _by_mask(cell: jax.Array, q: jax.Array, cells: int) -> jax.Array:
    """The same by masked sums: few cells would make most additions of a scatter wait for each other."""
    member = cell[..., None] == jnp.arange(cells, dtype=jnp.int32)
    parts = (jnp.ones_like(q), q >> _HALF, q & ((1 << _HALF) - 1))
    return jnp.stack([jnp.sum(jnp.where(member, x[..., None], 0), axis=-2, dtype=jnp.int32) for x in parts])
