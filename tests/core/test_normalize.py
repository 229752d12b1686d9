import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.normalize import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, INCEPTION_STD, normalize


def test_inception_maps_bytes_to_minus_one_and_one():
    image = np.asarray([[[0, 127, 255]]], np.uint8)
    result = normalize(image, mean=INCEPTION_MEAN, std=INCEPTION_STD)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, [[[-1.0, -0.5 / 127.5, 1.0]]], rtol=1e-6)


def test_each_channel_has_its_own_mean_and_std():
    image = np.full((2, 3, 1, 3), 100, np.uint8)
    expected = [(100 - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    jitted = jax.jit(lambda x: normalize(x, mean=IMAGENET_MEAN, std=IMAGENET_STD))
    np.testing.assert_allclose(jitted(image)[1, 2, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(jitted(image), normalize(image, mean=IMAGENET_MEAN, std=IMAGENET_STD), rtol=1e-6)


def test_imagenet_constants_are_the_published_ones_in_bytes():
    np.testing.assert_allclose(IMAGENET_MEAN, 255 * np.asarray([0.485, 0.456, 0.406]), rtol=1e-9)
    np.testing.assert_allclose(IMAGENET_STD, 255 * np.asarray([0.229, 0.224, 0.225]), rtol=1e-9)


@pytest.mark.parametrize(
    ("channels", "mean", "std"), [(1, (0, 0, 0), (1, 1, 1)), (3, (0, 0), (1, 1)), (3, (0, 0, 0), (1, 1))]
)
def test_channels_must_match(channels, mean, std):
    with pytest.raises(ValueError, match=f"image has {channels} channels"):
        normalize(np.zeros((2, 2, channels), np.uint8), mean=mean, std=std)


def test_std_must_be_positive():
    with pytest.raises(ValueError, match="std must be positive"):
        normalize(np.zeros((2, 2, 3), np.uint8), mean=(0, 0, 0), std=(1, 0, 1))
