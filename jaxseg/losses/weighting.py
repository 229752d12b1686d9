"""Weights of classes, from how many pixels each has in a data set."""

import numpy as np
from numpy.typing import ArrayLike

METHODS = ("median_frequency", "inverse_log", "inverse_frequency", "effective_number")
SCALES = ("mean", "sum", "pixels")


def median_frequency(pixels: ArrayLike, image_pixels: ArrayLike) -> np.ndarray:
    """Median frequency balancing: a class of median frequency weighs 1, a rarer one more.

    `w_c = median(f) / f_c`, `f_c = pixels of c / pixels of the images that contain c`; median over the classes present.

    Args:
      pixels: integers `[c]`, pixels of each class.
      image_pixels: integers `[c]`, pixels (void left out) of the images that contain the class.

    Returns:
      float64 `[c]`; 0 for a class without a pixel. Pixels (60, 30, 10) in images of (100, 100, 50) give frequencies
      .6, .3, .2 and weights (.5, 1, 1.5).

    Raises:
      TypeError, ValueError: counts are not integers, negative, contradict each other, or there is none.

    Reference: Eigen & Fergus, arXiv 1411.4734, section 6.3.2; SegNet, arXiv 1511.00561, section 3.1.
    """
    pixels, image_pixels = _counts(pixels), _counts(image_pixels, name="image_pixels")
    if pixels.shape != image_pixels.shape or np.any(pixels > image_pixels):
        raise ValueError(f"pixels {pixels.tolist()} are more than those of their images {image_pixels.tolist()}")
    present = pixels > 0
    frequency = pixels / np.maximum(image_pixels, 1)
    return np.where(present, np.median(frequency[present]) / np.where(present, frequency, 1), 0.0)


def inverse_log(pixels: ArrayLike, *, offset: float = 1.02) -> np.ndarray:
    """ENet's weights: `w_c = 1 / ln(offset + p_c)` with the share `p_c` of all pixels; bounded where p_c tends to 0.

    Args:
      pixels: integers `[c]`, pixels of each class.
      offset: above 1; 1.02 gives weights between 1.42 and 50.5.

    Returns:
      float64 `[c]`; a class without a pixel has the largest weight, which no pixel uses. Pixels (3, 1) give
      (1 / ln 1.77, 1 / ln 1.27) = (1.7514, 4.1838).

    Raises:
      TypeError, ValueError: counts are not integers, negative, or there is none; offset is not above 1.

    Reference: Paszke et al., arXiv 1606.02147, section 5.2.
    """
    if not 1 < offset < float("inf"):
        raise ValueError(f"offset = {offset} is not a finite number above 1")
    pixels = _counts(pixels)
    return 1 / np.log(offset + pixels / pixels.sum())


def inverse_frequency(pixels: ArrayLike, *, power: float = 1.0, scale: str = "mean") -> np.ndarray:
    """`w_c` in proportion to `(1 / n_c)^power`.

    Args:
      pixels: integers `[c]`, pixels of each class, `n_c`.
      power: 1, or 0.5 for the milder square root.
      scale: `mean`: the weights of the classes present have a mean of 1; `sum`: they add up to 1; `pixels`: the mean of
        the weights over pixels is 1 (scikit-learn's `balanced`, over the classes present), which keeps the loss's size.

    Returns:
      float64 `[c]`; 0 for a class without a pixel. Pixels (3, 1) give (.5, 1.5), by `pixels` (2/3, 2).

    Raises:
      TypeError, ValueError: counts are not integers, negative, or there is none; an option is out of its range.
    """
    if not 0 <= power < float("inf"):
        raise ValueError(f"power = {power} is not a finite number of at least 0")
    pixels = _counts(pixels)
    present = pixels > 0
    # Relative to the largest, so that no power of a count leaves the range of floats.
    weights = np.where(present, (pixels.max() / np.maximum(pixels, 1)) ** power, 0.0)
    return _scaled(weights, pixels, scale)


def effective_number(pixels: ArrayLike, *, beta: float = 0.9999, scale: str = "mean") -> np.ndarray:
    """Class-balanced weights: `w_c` in proportion to `(1 - beta) / (1 - beta^n_c)`, the inverse of an effective number.

    Args:
      pixels: integers `[c]`, pixels of each class, `n_c`.
      beta: in [0, 1); 0 gives equal weights. Only counts up to about `1 / (1 - beta)` differ: the paper's .9 to .9999
        are for counts of images; counts of pixels want .9999999 or so.
      scale: as `inverse_frequency`; `mean` is the paper's, whose weights add up to the number of classes.

    Returns:
      float64 `[c]`; 0 for a class without a pixel. Pixels (1, 2) with beta .5 give effective numbers 1 and 1.5 and
      weights (1.2, .8).

    Raises:
      TypeError, ValueError: counts are not integers, negative, or there is none; an option is out of its range.

    Reference: Cui et al., arXiv 1901.05555, equations 2 to 4.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta = {beta} is not in [0, 1)")
    pixels = _counts(pixels)
    present = pixels > 0
    log_beta = np.log(beta) if beta else -np.inf
    # 1 - beta^n by expm1: for beta near 1 the difference would lose its digits.
    effective = -np.expm1(np.where(present, pixels, 1) * log_beta)
    return _scaled(np.where(present, (1 - beta) / effective, 0.0), pixels, scale)


def _scaled(weights: np.ndarray, pixels: np.ndarray, scale: str) -> np.ndarray:
    if scale not in SCALES:
        raise ValueError(f"scale = {scale!r} is not one of {', '.join(SCALES)}")
    if scale == "pixels":
        return weights * (pixels.sum() / (weights @ pixels))
    return weights * ((1 if scale == "sum" else np.count_nonzero(pixels)) / weights.sum())


def _counts(values: ArrayLike, *, name: str = "pixels") -> np.ndarray:
    counts = np.asarray(values)
    if not np.issubdtype(counts.dtype, np.integer):
        raise TypeError(f"{name} are counts, integers, not {counts.dtype}")
    if counts.ndim != 1 or not counts.size or counts.min() < 0 or not counts.any():
        raise ValueError(f"{name} is one count a class, none negative, not all 0; these are {counts.tolist()}")
    return counts.astype(np.int64)
