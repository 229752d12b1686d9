"""Weights from pixel counts, by hand, exactly, and for counts that floats are short of."""

from fractions import Fraction

import numpy as np
import pytest

from jaxseg.losses.weighting import effective_number, inverse_frequency, inverse_log, median_frequency


def test_median_frequency():
    np.testing.assert_allclose(median_frequency([60, 30, 10], [100, 100, 50]), [0.5, 1.0, 1.5])
    # An absent class weighs 0 and is no part of the median; of four classes it is the mean of the middle two.
    np.testing.assert_allclose(median_frequency([60, 0, 30, 10], [100, 0, 100, 50]), [0.5, 0, 1.0, 1.5])
    np.testing.assert_allclose(median_frequency([10, 20, 30, 40], [100] * 4), [2.5, 1.25, 0.25 / 0.3, 0.625])


def test_inverse_log():
    np.testing.assert_allclose(inverse_log([3, 1]), [1 / np.log(1.77), 1 / np.log(1.27)])
    np.testing.assert_allclose(inverse_log([1, 0]), [1.42227783, 50.49834965], rtol=1e-7)
    np.testing.assert_allclose(inverse_log([3, 1], offset=1.1), [1 / np.log(1.85), 1 / np.log(1.35)])


def test_inverse_frequency():
    np.testing.assert_allclose(inverse_frequency([3, 1, 0]), [0.5, 1.5, 0])
    np.testing.assert_allclose(inverse_frequency([3, 1], scale="sum"), [0.25, 0.75])
    np.testing.assert_allclose(inverse_frequency([3, 1], scale="pixels"), [2 / 3, 2])
    np.testing.assert_allclose(inverse_frequency([4, 1], power=0.5), [2 / 3, 4 / 3])
    np.testing.assert_allclose(inverse_frequency([4, 1], power=0.0), [1, 1])


@pytest.mark.parametrize("scale", ["mean", "sum", "pixels"])
def test_what_the_scales_keep(scale):
    counts = np.asarray([7, 0, 100, 3])
    for weights in (inverse_frequency(counts, scale=scale), effective_number(counts, beta=0.9, scale=scale)):
        kept = {"mean": weights.sum() / 3, "sum": weights.sum(), "pixels": (weights * counts).sum() / counts.sum()}
        assert kept[scale] == pytest.approx(1, rel=1e-12)


def test_effective_number():
    np.testing.assert_allclose(effective_number([1, 2], beta=0.5), [1.2, 0.8])
    np.testing.assert_allclose(effective_number([1, 2, 0], beta=0.5), [1.2, 0.8, 0])
    np.testing.assert_allclose(effective_number([5, 100], beta=0.0), [1, 1])


def test_effective_number_keeps_its_digits_for_beta_near_1():
    beta = 1 - 2.0**-40
    exact = [1 / sum(Fraction(beta) ** k for k in range(n)) for n in (3, 4)]
    expected = [float(2 * e / sum(exact)) for e in exact]
    np.testing.assert_allclose(effective_number([3, 4], beta=beta), expected, rtol=1e-14)


def test_counts_past_float32_and_int32():
    big = np.asarray([2**40 + 1, 2**20, 1])
    weights = inverse_frequency(big, scale="sum")
    np.testing.assert_allclose(weights[0] / weights[2], 1 / (2**40 + 1), rtol=1e-12)
    assert weights.dtype == np.float64
    np.testing.assert_allclose(median_frequency(big, [2**41] * 3)[1], 1.0)


@pytest.mark.parametrize("function", [inverse_log, inverse_frequency, effective_number])
@pytest.mark.parametrize(
    ("counts", "error"),
    [([1.5, 2.0], TypeError), ([1, -1], ValueError), ([0, 0], ValueError), ([[1, 2]], ValueError), ([], (TypeError))],
)
def test_bad_counts(function, counts, error):
    with pytest.raises(error, match="count"):
        function(counts)


@pytest.mark.parametrize(
    ("function", "options", "says"),
    [
        (inverse_log, {"offset": 1.0}, "offset"),
        (inverse_frequency, {"power": -1}, "power"),
        (inverse_frequency, {"scale": "max"}, "mean, sum, pixels"),
        (effective_number, {"beta": 1.0}, "beta"),
        (effective_number, {"scale": "max"}, "mean, sum, pixels"),
    ],
)
def test_bad_options(function, options, says):
    with pytest.raises(ValueError, match=says):
        function([1, 2], **options)


@pytest.mark.parametrize("image_pixels", [[1, 5], [5]])
def test_counts_that_contradict_each_other(image_pixels):
    with pytest.raises(ValueError, match="more than those of their images"):
        median_frequency([3, 4], image_pixels)
