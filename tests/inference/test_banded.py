"""Bands against the Predictor's windows, bit for bit."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.inference import banded
from jaxseg.inference import predictor as predictor_module
from jaxseg.inference.banded import BandedLabels, has_bands
from jaxseg.inference.predictor import Predictor, windows_over
from jaxseg.models import unet


class Conv(nn.Module):
    """Sees its neighbours and the window's border, so that every window's place matters."""

    @nn.compact
    def __call__(self, image, *, train):
        return {"logits": nn.Conv(3, (3, 3))(image)}


class Uneven(nn.Module):
    """Scores that hang on the place in the window: a pixel's windows disagree, and no two classes are near."""

    def __call__(self, image, *, train):
        row, column = (jnp.arange(n, dtype=jnp.float32) for n in image.shape[-3:-1])
        place = jnp.sin(row[:, None, None] * 1.7 + column[:, None] * 0.9 + jnp.asarray([0.0, 2.0, 4.0]))
        return {"logits": image + 2 * place}


def predictor(model, **options):
    return Predictor(model=model, mean=(100.0, 110.0, 120.0), std=(50.0, 60.0, 70.0), num_classes=3, **options)


def image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


SIZES = [(23, 31), (5, 40), (40, 4), (1, 1)]
STRIDES = [(8, 9), (1, 4)]


def test_bands_are_the_windowed_labels():
    asked = predictor(Uneven(), window_px=(8, 9), stride_px=(5, 7))
    bands = BandedLabels(asked)
    for height, width in [(23, 31), (8, 9)]:
        picture = image(height, width)
        found = list(bands({}, picture))
        assert all(band.dtype == np.int32 and band.shape[1] == width for band in found)
        expected = np.asarray(jax.jit(asked.labels)({}, picture[None]))[0]
        np.testing.assert_array_equal(np.concatenate(found), expected, err_msg=f"{height}x{width}")
        assert len(np.unique(expected)) == 3


def assert_same_sums(asked, variables, sizes, monkeypatch):
    """Labels hide what does not change an order; here the largest probability itself is the label."""

    def largest(x):
        return jax.lax.bitcast_convert_type(x.max(-1), jnp.int32)

    # Compiled in other surroundings, XLA's logarithm itself differs in its last bit.
    for module in (banded, predictor_module):
        monkeypatch.setattr(module, "finite_log", lambda x: x)
        monkeypatch.setattr(module, "class_argmax", largest)
    bands = BandedLabels(asked)
    for height, width in sizes:
        picture = image(height, width, seed=1)
        expected = np.asarray(jax.jit(asked.labels)(variables, picture[None]))[0].view(np.float32)
        found = np.concatenate(list(bands(variables, picture))).view(np.float32)
        np.testing.assert_array_equal(found, expected, err_msg=f"{height}x{width}")
        assert height * width == 1 or np.ptp(expected) > 0.02


@pytest.mark.parametrize("stride", STRIDES)
def test_sums_are_the_predictors_to_the_last_bit(stride, monkeypatch):
    asked = predictor(Conv(), window_px=(8, 9), stride_px=stride)
    variables = Conv().init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), train=False)
    assert_same_sums(asked, variables, SIZES, monkeypatch)


def test_a_network_of_the_project(monkeypatch):
    model = unet.build(num_classes=3, width=4, depth=2, padding="same", batch_norm=True)
    variables = jax.jit(lambda k: model.init(k, jnp.zeros((1, 33, 33, 3)), False))(jax.random.key(0))
    assert_same_sums(predictor(model, window_px=(33, 49), stride_px=(20, 31)), variables, [(90, 131)], monkeypatch)


def test_compiled_once_for_all_sizes_and_kept_small():
    traced = []

    class Noted(nn.Module):
        def __call__(self, image, *, train):
            traced.append(image.shape)
            return {"logits": image}

    bands = BandedLabels(predictor(Noted(), window_px=(8, 8), stride_px=(6, 6)))
    heights = [[len(band) for band in bands({}, image(*size))] for size in ((20, 20), (37, 9), (3, 50))]
    assert traced == [(1, 8, 8, 3)]
    assert heights == [[6, 6, 8], [6, 6, 6, 6, 5, 8], [3]]


def test_what_needs_the_whole_image_is_refused():
    for options in ({}, {"window_px": (8, 8), "flip": True}, {"window_px": (8, 8), "scales": (0.5, 1.0)}):
        assert not has_bands(predictor(Conv(), **options))
        with pytest.raises(JaxsegError, match="bands need a window"):
            BandedLabels(predictor(Conv(), **options))
    assert has_bands(predictor(Conv(), window_px=(8, 8)))


def test_windows_over_counts():
    for starts, window in (([0, 1], 2), ([0, 3, 6, 7], 4), ([0], 5), ([0, 4], 4)):
        expected = np.zeros(starts[-1] + window)
        for start, pixel in itertools.product(starts, range(window)):
            expected[start + pixel] += 1
        np.testing.assert_array_equal(windows_over(starts, window), expected)
