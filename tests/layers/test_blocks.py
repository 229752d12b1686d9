"""Convolution blocks, ASPP and the checks of images, strides and rates."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.layers.aspp import ASPP
from jaxseg.layers.conv_norm import Conv, ConvNorm, SeparableConvNorm, he_normal
from jaxseg.layers.heads import check_tap, rates_at
from jaxseg.layers.image import check_image, check_output_stride


def test_padding_options_differ_at_even_sizes():
    """Stride 2, kernel of ones, 4 px: TensorFlow pads (0, 1), torch (1, 1)."""
    x = jnp.asarray([1.0, 10.0, 100.0, 1000.0]).reshape(1, 1, 4, 1)
    ones = {"params": {"kernel": jnp.ones((3, 3, 1, 1))}}
    same = Conv(1, 3, strides=2).apply(ones, x)
    torch = Conv(1, 3, strides=2, padding="torch").apply(ones, x)
    np.testing.assert_allclose(np.ravel(same), [111, 1100])
    np.testing.assert_allclose(np.ravel(torch), [11, 1110])
    two = Conv(1, 3, padding=2).apply(ones, x)
    assert two.shape == (1, 3, 6, 1)
    np.testing.assert_allclose(two[0, 1, :, 0], [1, 11, 111, 1110, 1100, 1000])
    assert Conv(1, 3, padding="valid").apply(ones, jnp.zeros((1, 5, 4, 1))).shape == (1, 3, 2, 1)
    for wrong in ("reflect", -1):
        with pytest.raises(ValueError, match="padding"):
            Conv(1, 3, padding=wrong).apply(ones, x)


def test_he_normal_counts_the_fan_out_of_one_group():
    dense = he_normal()(jax.random.key(0), (3, 3, 64, 128), jnp.float32)
    depthwise = he_normal(groups=512)(jax.random.key(0), (3, 3, 1, 512), jnp.float32)
    assert float(jnp.std(dense)) == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert float(jnp.std(depthwise)) == pytest.approx((2 / 9) ** 0.5, rel=0.05)


def test_conv_norm_is_convolution_then_norm_then_activation():
    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
    layer = ConvNorm(4, activation=nn.relu6)
    v = layer.init(jax.random.key(1), x, False)
    v = {
        "params": v["params"] | {"norm": {"scale": jnp.full(4, 9.0), "bias": jnp.full(4, 2.0)}},
        "batch_stats": {"norm": {"mean": jnp.full(4, 0.5), "var": jnp.full(4, 4.0 - 1e-5)}},
    }
    linear = np.asarray(x, np.float64) @ np.asarray(v["params"]["conv"]["kernel"][0, 0], np.float64)
    expected = np.clip((linear - 0.5) / 2 * 9 + 2, 0, 6)
    assert 0 < (expected == 6).mean() < 1 and 0 < (expected == 0).mean() < 1
    np.testing.assert_allclose(layer.apply(v, x, False), expected, atol=1e-4)


def test_separable_is_depthwise_then_pointwise():
    x = jax.random.normal(jax.random.key(0), (1, 6, 5, 3))
    layer = SeparableConvNorm(4, dilation=2)
    v = layer.init(jax.random.key(1), x, False)
    shapes = jax.tree.map(jnp.shape, v["params"])
    assert shapes["depthwise"]["conv"]["kernel"] == (3, 3, 1, 3)
    assert shapes["pointwise"]["conv"]["kernel"] == (1, 1, 3, 4)
    depthwise = Conv(3, 3, dilation=2, groups=3).apply({"params": v["params"]["depthwise"]["conv"]}, x)
    scale = (1 + 1e-5) ** -0.5
    hidden = np.maximum(np.asarray(depthwise, np.float64) * scale, 0)
    expected = np.maximum(hidden @ np.asarray(v["params"]["pointwise"]["conv"]["kernel"][0, 0]) * scale, 0)
    np.testing.assert_allclose(layer.apply(v, x, False), expected, atol=1e-5)


def test_separable_without_a_norm_between_is_one_linear_map_before_its_own():
    x = jax.random.normal(jax.random.key(0), (1, 6, 5, 3))
    layer = SeparableConvNorm(4, dilation=2, activation=None, depthwise_norm=False)
    v = layer.init(jax.random.key(1), x, False)
    assert set(v["params"]["depthwise"]) == {"kernel"} and set(v["batch_stats"]) == {"pointwise"}
    depthwise = Conv(3, 3, dilation=2, groups=3).apply({"params": v["params"]["depthwise"]}, x)
    expected = np.asarray(depthwise) @ np.asarray(v["params"]["pointwise"]["conv"]["kernel"][0, 0])
    np.testing.assert_allclose(layer.apply(v, x, False), expected * (1 + 1e-5) ** -0.5, atol=1e-5)


def branch(v, name, x, dilation=1):
    kernel = v["params"][name]["conv"]["kernel"]
    y = Conv(kernel.shape[-1], kernel.shape[0], dilation=dilation).apply({"params": {"kernel": kernel}}, x)
    return jnp.maximum(y * (1 + 1e-5) ** -0.5, 0)


def test_aspp_concatenates_pooling_1x1_and_rates():
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 3))
    layer = ASPP(4, rates=(2, 3))
    v = layer.init(jax.random.key(1), x, False)
    pooled = branch(v, "image_pooling", jnp.mean(x, axis=(1, 2), keepdims=True))
    parts = [jnp.broadcast_to(pooled, (2, 7, 6, 4)), branch(v, "conv1x1", x)]
    parts += [branch(v, "atrous1", x, 2), branch(v, "atrous2", x, 3)]
    expected = branch(v, "project", jnp.concatenate(parts, axis=-1))
    assert float(expected.max()) > 0.1
    np.testing.assert_allclose(layer.apply(v, x, False), expected, atol=1e-5)


def test_aspp_without_rates_or_pooling_and_its_dropout():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    layer = ASPP(64, rates=(), image_pooling=False, dropout_rate=0.5)
    v = layer.init(jax.random.key(1), x, False)
    assert set(v["params"]) == {"conv1x1", "project"}
    y = layer.apply(v, x, True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(2)})[0]
    kept = ASPP(64, rates=(), image_pooling=False, dropout_rate=0.0).apply(v, x, True, mutable=["batch_stats"])[0]
    mask = np.asarray(y) != 0
    np.testing.assert_allclose(np.asarray(y)[mask], 2 * np.asarray(kept)[mask], rtol=1e-5)
    assert mask.sum() / (np.asarray(kept) != 0).sum() == pytest.approx(0.5, abs=0.05)


def test_rates_follow_the_output_stride():
    assert rates_at((6, 12, 18), 16, model="m") == (6, 12, 18)
    assert rates_at((6, 12, 18), 8, model="m") == (12, 24, 36)
    assert rates_at((6, 12, 18), 32, model="m") == (3, 6, 9)
    with pytest.raises(JaxsegError, match=r"rates \(3,\)"):
        rates_at((3,), 32, model="m")


def test_errors_say_what_was_wrong():
    with pytest.raises(JaxsegError, match=r"RGB images.*\(2, 8, 8, 1\)"):
        check_image(jnp.zeros((2, 8, 8, 1)), model="m")
    with pytest.raises(JaxsegError, match="normalize"):
        check_image(jnp.zeros((2, 8, 8, 3), jnp.uint8), model="m")
    with pytest.raises(JaxsegError, match="at least 9"):
        check_image(jnp.zeros((2, 8, 12, 3)), model="m", min_size=9)
    with pytest.raises(JaxsegError, match="output_stride = 12.*8, 16"):
        check_output_stride(12, allowed=(8, 16), model="m")
    with pytest.raises(JaxsegError, match="low_level = 's5'.*s4"):
        check_tap({"s4": 0, "s8": 0}, "s5", option="low_level")
