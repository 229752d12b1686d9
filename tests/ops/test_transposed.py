"""Transposed convolution against a loop that is its definition, the gradient of a convolution, and hand values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxseg.ops.conv import conv
from jaxseg.ops.transposed import bilinear_conv_transpose, bilinear_weights, conv_transpose


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def loop(x, kernel, s, groups):
    """Every input pixel adds its kernel to the output, float64, uncropped."""
    b, h, w, c = x.shape
    kh, kw, n, _ = kernel.shape
    y = np.zeros((b, (h - 1) * s + kh, (w - 1) * s + kw, n * groups))
    for i, j, m in np.ndindex(h, w, c):
        first = m // (c // groups) * n
        patch = x[:, i, j, m][:, None, None, None] * kernel[None, :, :, :, m]
        y[:, i * s : i * s + kh, j * s : j * s + kw, first : first + n] += patch
    return y


@pytest.mark.parametrize(
    "k, s, groups, c, n",
    [(4, 2, 1, 3, 2), (3, 2, 1, 2, 3), (2, 3, 1, 2, 2), (4, 2, 3, 3, 1), (3, 2, 2, 4, 3)],
)
def test_values_are_the_definition(k, s, groups, c, n):
    """n counts the output channels of one group."""
    x, kernel = normal(2, 4, 5, c), normal(k, k, n, c, seed=1)
    expected = loop(np.asarray(x, np.float64), np.asarray(kernel, np.float64), s, groups)

    @jax.jit
    def every(x, kernel):
        options = {"strides": s, "groups": groups}
        return (
            conv_transpose(x, kernel, **options),
            conv_transpose(x, kernel, padding=1, size=(4, 3), **options),
            conv_transpose(x, kernel, padding=1, output_padding=2, **options),
        )

    full, cropped, grown = every(x, kernel)
    np.testing.assert_allclose(full, expected, atol=1e-4)
    np.testing.assert_allclose(cropped, expected[:, 1:5, 1:4], atol=1e-4)
    larger = np.pad(expected, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
    np.testing.assert_allclose(grown, larger, atol=1e-4)
    check_grads(jax.jit(lambda x, w: every(x, w)[1]), (x, kernel), order=1, modes=["rev"], eps=1.0)


@pytest.mark.parametrize("k, s, pad, groups", [(4, 2, 1, 1), (6, 4, 2, 4)])
def test_it_is_the_gradient_of_a_convolution(k, s, pad, groups):
    kernel = normal(k, k, 4 // groups, 8, seed=1)
    image = normal(2, 12, 11, 4)

    def forward(x):
        return conv(x, kernel, strides=s, padding=((pad, pad), (pad, pad)), groups=groups)

    @jax.jit
    def both(image):
        y, vjp = jax.vjp(forward, image)
        return conv_transpose(y, kernel, strides=s, padding=pad, size=(12, 11), groups=groups), vjp(y)[0]

    np.testing.assert_allclose(*both(image), atol=1e-3)


@pytest.mark.parametrize(
    "k, first",
    [
        (3, [0.5, 1, 0.5]),
        (4, [0.25, 0.75, 0.75, 0.25]),
        (16, [0.0625, 0.1875]),
        (32, [0.03125, 0.09375]),
        (63, [0.03125, 0.0625, 0.09375]),
        (64, [0.015625, 0.046875]),
    ],
)
def test_bilinear_weights(k, first):
    weights = bilinear_weights(k)
    np.testing.assert_allclose(weights[: len(first)], first)
    np.testing.assert_array_equal(weights, weights[::-1])


@pytest.mark.parametrize(
    "k, s, pad, size", [(4, 2, 1, (8, 10)), (16, 8, 3, (25, 31)), (63, 32, 18, (60, 61)), (3, 2, 0, (9, 11))]
)
def test_the_fixed_bilinear_one_is_the_general_one(k, s, pad, size):
    x = normal(2, 4, 5, 3)
    plane = np.outer(bilinear_weights(k), bilinear_weights(k))
    depthwise = jnp.asarray(np.tile(plane[:, :, None, None], (1, 1, 1, 3)))
    dense = jnp.asarray(plane[:, :, None, None] * np.eye(3, dtype=np.float32))

    @jax.jit
    def every(x):
        options = {"strides": s, "padding": pad, "size": size}
        fixed = bilinear_conv_transpose(x, kernel_size=k, **options)
        return fixed, conv_transpose(x, depthwise, groups=3, **options), conv_transpose(x, dense, **options)

    found, by_channel, full = every(x)
    np.testing.assert_allclose(found, by_channel, atol=1e-5)
    np.testing.assert_allclose(found, full, atol=1e-5)


def test_leading_dimensions_jit_vmap_and_bfloat16():
    x, kernel = normal(2, 3, 4, 5, 2), normal(3, 3, 3, 2, seed=1)

    def f(x):
        return conv_transpose(x, kernel, strides=2)

    # Not under jit.
    expected = f(x.reshape(6, 4, 5, 2)).reshape(2, 3, 9, 11, 3)
    for found in (jax.jit(f)(x), jax.jit(jax.vmap(f))(x)):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    rough = conv_transpose(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), strides=2)
    assert rough.dtype == jnp.bfloat16
    np.testing.assert_allclose(rough.astype(jnp.float32), expected, atol=0.1)


def test_errors():
    x = normal(1, 2, 2, 2)
    with pytest.raises(ValueError, match="do not fit"):
        conv_transpose(x, normal(2, 2, 1, 3), strides=2)
    with pytest.raises(ValueError, match="do not fit"):
        conv_transpose(normal(1, 2, 2, 3), normal(2, 2, 1, 3), strides=2, groups=2)
    with pytest.raises(ValueError, match="cast"):
        conv_transpose(x, normal(2, 2, 1, 2).astype(jnp.bfloat16), strides=2)
    with pytest.raises(ValueError, match="size"):
        conv_transpose(x, normal(2, 2, 1, 2), strides=2, padding=2)
    with pytest.raises(ValueError, match="range"):
        conv_transpose(x, normal(2, 2, 1, 2), strides=0)
