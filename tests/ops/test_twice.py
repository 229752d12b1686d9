"""Convolutions of an image enlarged to twice its size: each platform's way against the plain convolution."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxseg.layers.conv_norm import Conv, ConvNorm
from jaxseg.ops.conv import conv
from jaxseg.ops.nine_products import conv_by_nine
from jaxseg.ops.twice import _by_four, _by_nine, _plain, _spread, conv_of_twice, twice
from tests.ops.arrays import normal, relative

SIZES = [(1, 1), (5, 7), (4, 2), (24, 21)]  # at the last the image is bordered and not its products


def in_float64(x, kernel):
    """`[b, 2 h, 2 w, n]`, tap by tap."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    large = np.pad(x.repeat(2, axis=1).repeat(2, axis=2), ((0, 0), (1, 1), (1, 1), (0, 0)))
    h, w = 2 * x.shape[1], 2 * x.shape[2]
    return sum(large[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3))


def gradients(f, g, *operands):
    return jax.vjp(f, *operands)[1](g)


@pytest.mark.parametrize("way", [_by_four, _by_nine, _plain, _spread])
@pytest.mark.parametrize("h, w", SIZES)
def test_values_and_gradients(way, h, w):
    """Values against NumPy in float64; gradients by the transpose: `<g, f(x)>` is linear in x and in the kernel."""
    x, kernel, g = normal(0, 2, h, w, 4), normal(1, 3, 3, 4, 3), normal(2, 2, 2 * h, 2 * w, 3)
    with jax.default_matmul_precision("highest"):
        assert relative(way(x, kernel, None), in_float64(x, kernel)) < 1e-6
        of_x, of_kernel, of_beside = gradients(way, g, x, kernel, None)
        assert of_beside is None
        others = normal(3, *x.shape), normal(4, *kernel.shape)
        expected = np.sum(g * in_float64(others[0], kernel)), np.sum(g * in_float64(x, others[1]))
        np.testing.assert_allclose(np.vdot(of_x, others[0]), expected[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(np.vdot(of_kernel, others[1]), expected[1], rtol=1e-4, atol=1e-4)
        plain = gradients(_plain, g, x, kernel, None)
        for got, other in zip((of_x, of_kernel), plain[:2], strict=True):
            assert relative(got, other) < 1e-6


@pytest.mark.parametrize("h, w", SIZES)
def test_a_map_beside_it(h, w):
    """Values and three gradients are those of the convolution of both, eager, under jit and under vmap."""
    x, beside = normal(0, 2, h, w, 4), normal(1, 2, 2 * h, 2 * w, 5)
    kernel, g = normal(2, 3, 3, 9, 3), normal(3, 2, 2 * h, 2 * w, 3)
    expected = conv(jnp.concatenate([twice(x), beside], axis=-1), kernel)
    wanted = gradients(_plain, g, x, kernel, beside)
    for f in (conv_of_twice, jax.jit(conv_of_twice)):
        assert relative(f(x, kernel, beside), expected) < 1e-6
        for got, other in zip(gradients(f, g, x, kernel, beside), wanted, strict=True):
            assert relative(got, other) < 1e-6
    assert relative(_spread(x, kernel, beside), expected) < 1e-6
    for got, other in zip(gradients(_spread, g, x, kernel, beside), wanted, strict=True):
        assert relative(got, other) < 1e-6
    of_one = jax.vmap(lambda x, beside: conv_of_twice(x, kernel, beside))
    assert relative(of_one(x, beside), expected) < 1e-6
    np.testing.assert_array_equal(conv_of_twice(x[0], kernel, beside[0]), conv_of_twice(x[:1], kernel, beside[:1])[0])


def test_gradients_by_finite_differences():
    x, kernel, beside = normal(0, 1, 2, 3, 2), normal(1, 3, 3, 3, 2), normal(2, 1, 4, 6, 1)
    check_grads(conv_of_twice, (x, kernel, beside), order=1, modes=["rev"], rtol=1e-2)


def test_error_of_nine_products():
    """Against float64, over the values' deviation: no larger than that of the plain convolution in float32."""
    x, kernel = normal(0, 2, 16, 16, 128), normal(1, 3, 3, 128, 32)
    exact = in_float64(x, kernel)
    nine, plain = (
        conv_by_nine(x, kernel),
        jax.lax.conv_general_dilated(twice(x), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
    )
    assert relative(nine, exact) < 1.5 * relative(plain, exact) < 1e-6


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bits(dtype):
    """Eager, jit and vmap; the float32 result rounded, within the rounding of the kernel's sums."""
    x, kernel = normal(0, 2, 5, 7, 16, dtype=dtype), normal(1, 3, 3, 16, 6, dtype=dtype)
    wide = conv(twice(x).astype(jnp.float32), kernel.astype(jnp.float32))
    for f in (conv_of_twice, jax.jit(conv_of_twice), lambda *of: _by_four(*of, None), lambda *of: _spread(*of, None)):
        got = f(x, kernel)
        assert got.dtype == dtype and relative(got.astype(jnp.float32), wide) < 5e-3
    assert conv_by_nine(x, kernel).dtype == dtype
    assert relative(conv_by_nine(x, kernel).astype(jnp.float32), wide) < 5e-3
    many = jax.vmap(conv_of_twice, in_axes=(0, None))(x[:, None], kernel)
    chex.assert_trees_all_equal(many[:, 0], conv_of_twice(x, kernel))


@pytest.mark.parametrize("way", [_by_four, _by_nine, _plain, _spread])
def test_by_hand(way):
    """One row of two pixels and a kernel of ones along it: sums of three of 1, 1, 10, 10."""
    x = jnp.asarray([1.0, 10.0]).reshape(1, 1, 2, 1)
    kernel = jnp.zeros((3, 3, 1, 1)).at[1].set(1.0)
    expected = [[2.0, 12.0, 21.0, 20.0]] * 2
    np.testing.assert_allclose(conv_of_twice(x, kernel)[0, :, :, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(way(x, kernel, None)[0, :, :, 0], expected, rtol=1e-6)


PLATFORMS = [("cpu", "float32", True), ("cuda", "float32", False), ("tpu", "float32", True)]


OF_16_BITS = [("cpu", "bfloat16", False), ("cuda", "bfloat16", True), ("tpu", "bfloat16", True)]


@pytest.mark.parametrize("platform, dtype, small", PLATFORMS + OF_16_BITS)
def test_who_makes_the_large_image(platform, dtype, small):
    """Forward and gradients, read off the program for each platform: `[2, 8, 10, 4]` is the enlarged image."""
    x, kernel = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((2, 4, 5, 4), (3, 3, 4, 3)))

    def f(x, kernel):
        y, back = jax.vjp(conv_of_twice, x, kernel)
        return y, *back(y)

    text = jax.jit(f).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    assert ("tensor<2x8x10x4x" not in text) == small


def test_a_layer_with_a_map_beside():
    """The parameters are those of the convolution of both, whose values it has."""
    x, beside = normal(0, 2, 4, 5, 4), normal(1, 2, 8, 10, 3)
    layer = ConvNorm(6, 3, twice=True)
    variables = layer.init(jax.random.key(0), x, False, beside)
    assert variables["params"]["conv"]["kernel"].shape == (3, 3, 7, 6)
    both = jnp.concatenate([twice(x), beside], axis=-1)
    expected = ConvNorm(6, 3).apply(variables, both, False)
    np.testing.assert_allclose(layer.apply(variables, x, False, beside), expected, rtol=1e-5, atol=1e-5)


def test_what_is_refused():
    x, kernel = jnp.zeros((1, 4, 4, 2)), jnp.zeros((3, 3, 5, 2))
    with pytest.raises(ValueError, match="3x3 taps, not"):
        conv_of_twice(x, jnp.zeros((5, 5, 2, 2)))
    with pytest.raises(ValueError, match="lies float32"):
        conv_of_twice(x, kernel, jnp.zeros((1, 8, 7, 3)))
    with pytest.raises(ValueError, match="lies bfloat16"):
        conv_of_twice(x, kernel, jnp.zeros((1, 8, 8, 3), jnp.bfloat16))
    for beside in (None, jnp.zeros((1, 8, 8, 2))):
        with pytest.raises(ValueError, match="does not fit"):
            conv_of_twice(x, kernel, beside)
    with pytest.raises(ValueError, match="stride, rate and groups 1"):
        Conv(2, 3, strides=2, twice=True).init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="twice=True"):
        Conv(2, 3).init(jax.random.key(0), x, jnp.zeros((1, 8, 8, 2)))
