"""What TPUs get, run on this CPU: the same values and gradients, and programs that hold what they should."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops.pooling import max_pool, max_pool_with_indices, unpool
from jaxseg.ops.transposed import _products, _spread, conv_transpose
from jaxseg.ops.twice import conv_of_twice
from tests.ops.arrays import normal, relative


def lowered(f, *arguments, platform):
    return jax.jit(f).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("kernel_size", [(3, 3), (4, 4), (5, 5), (3, 2), (1, 3), (3, 6)])
def test_transposed_convolutions_of_stride_2(kernel_size):
    x, kernel = normal(0, 2, 5, 4, 3), normal(1, *kernel_size, 2, 3)
    expected, back = jax.vjp(lambda x, kernel: _products(x, kernel, 2, 1), x, kernel)
    y, mine = jax.vjp(_spread, x, kernel)
    assert y.shape == expected.shape and relative(y, expected) < 1e-6
    g = normal(2, *y.shape)
    for got, other in zip(mine(g), back(g), strict=True):
        assert relative(got, other) < 1e-6


def test_a_transposed_convolution_through_its_own_gradient(request):
    """Padding and size as stated; a kernel of the stride's size has products on TPUs too."""
    x, kernel, g = normal(0, 2, 5, 4, 3), normal(1, 3, 3, 2, 3), normal(2, 2, 10, 8, 2)
    of = lambda x, kernel: conv_transpose(x, kernel, strides=2, padding=1, size=(10, 8))  # noqa: E731
    expected, back = jax.vjp(of, x, kernel)
    wanted = back(g)
    for platform, convolutions in (("cpu", 0), ("cuda", 0), ("tpu", 1)):
        assert lowered(of, x, kernel, platform=platform).count("stablehlo.convolution") == convolutions
    assert "stablehlo.convolution" not in lowered(of, x, kernel[:2, :2], platform="tpu")
    request.getfixturevalue("tpu")
    y, back = jax.vjp(of, x, kernel)
    assert relative(y, expected) < 1e-6
    for got, other in zip(back(g), wanted, strict=True):
        assert relative(got, other) < 1e-6


@pytest.mark.parametrize("window, strides, padding", [(2, 2, 0), (3, 3, 1), (3, 2, 1), (2, 3, 0), (3, 1, 1)])
def test_gradients_of_pooling(window, strides, padding, request):
    x = normal(0, 2, 9, 8, 3)
    of = lambda x: max_pool(x, window, strides=strides, padding=padding)  # noqa: E731
    y, back = jax.vjp(of, x)
    g = normal(1, *y.shape)
    (expected,) = back(g)
    request.getfixturevalue("tpu")
    np.testing.assert_allclose(jax.vjp(of, x)[1](g)[0], expected, rtol=1e-6, atol=1e-6)


def test_unpooling(request):
    x = normal(0, 2, 7, 8, 3)
    values, indices = max_pool_with_indices(x, ceil=True)
    of = lambda values: unpool(values, indices, (7, 8))  # noqa: E731
    y, back = jax.vjp(of, values)
    (expected,) = back(x)
    request.getfixturevalue("tpu")
    np.testing.assert_array_equal(of(values), y)
    np.testing.assert_array_equal(jax.vjp(of, values)[1](x)[0], expected)


def test_no_axis_of_the_stride_in_a_tpus_programs():
    """Pooling's gradient and the convolution of a repeated image: XLA pads such an axis to a tile's side."""
    x, kernel = normal(0, 2, 8, 6, 4), normal(1, 3, 3, 4, 3)
    works = {
        "pooling": (jax.grad(lambda x: jnp.sum(max_pool(x, 2) ** 2)), (x,)),
        "overlapping": (jax.grad(lambda x: jnp.sum(max_pool(x, 3, strides=2, padding=1) ** 2)), (x,)),
        "twice": (jax.grad(lambda x, k: jnp.sum(conv_of_twice(x, k) ** 2), (0, 1)), (x, kernel)),
    }
    for name, (f, arguments) in works.items():
        found = [re.search(r"tensor<(\d+x){5}", lowered(f, *arguments, platform=p)) for p in ("tpu", "cuda")]
        assert found[0] is None and found[1] is not None, name
