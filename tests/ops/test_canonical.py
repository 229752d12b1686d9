"""Gradients of XLA's convolution in the form that a CPU runs fast in loops too."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops.canonical import (
    canonical_conv,
    canonical_input_gradient,
    canonical_kernel_gradient,
    stock_input_gradient,
    stock_kernel_gradient,
)
from jaxseg.ops.conv import conv
from jaxseg.ops.stock_conv import stock_conv

# h, w, kernel, strides, rates, pads: odd sizes; rows and columns that no window reaches; more padding than the kernel
# reaches; cropping.
CASES = {
    "plain": (7, 6, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
    "stride": (9, 8, (3, 3), (2, 2), (1, 1), ((1, 1), (1, 1))),
    "rest": (10, 12, (3, 2), (3, 4), (1, 1), ((0, 0), (0, 0))),
    "stem": (16, 15, (7, 7), (2, 2), (1, 1), ((3, 3), (3, 3))),
    "rate_and_stride": (11, 13, (3, 4), (2, 3), (2, 3), ((4, 1), (0, 7))),
    "far_padding": (5, 4, (2, 3), (2, 1), (1, 1), ((4, 3), (5, 6))),
    "cropping": (12, 11, (3, 3), (2, 1), (1, 2), ((-2, 1), (2, -3))),
    "one_column": (9, 7, (5, 1), (1, 2), (1, 1), ((2, 2), (0, 0))),
}


def arrays(case, dtype=jnp.float64, c=3, n=5, b=2):
    h, w, (kh, kw), strides, rates, pads = CASES[case]
    first, second, third = jax.random.split(jax.random.key(7), 3)
    x, kernel = jax.random.normal(first, (b, h, w, c), dtype), jax.random.normal(second, (kh, kw, c, n), dtype)
    options = {"strides": strides, "pads": pads, "dilation": rates}
    shape = jax.eval_shape(lambda x, k: stock_conv(x, k, **options), x, kernel).shape
    return x, kernel, jax.random.normal(third, shape, dtype), options


@pytest.mark.parametrize("case", CASES)
def test_gradients_in_double_precision(case):
    """As JAX derives them, to 1e-13 of the largest number."""
    with jax.enable_x64(True):
        x, kernel, g, options = arrays(case)
        for ours, theirs in (
            (canonical_input_gradient, stock_input_gradient),
            (canonical_kernel_gradient, stock_kernel_gradient),
        ):
            got, expected = (np.asarray(f(x, kernel, g, **options)) for f in (ours, theirs))
            assert got.shape == expected.shape and got.dtype == np.float64
            assert np.max(np.abs(got - expected)) < 1e-13 * np.max(np.abs(expected))


def test_gradients_by_hand():
    """x = 1 2 3 4, kernel 5 7, stride 2: y = 5 + 14, 15 + 28. For g = 1, 10: dx = 5 7 50 70, dk = 1 + 30, 2 + 40."""
    x, kernel = jnp.arange(1.0, 5).reshape(1, 1, 4, 1), jnp.asarray([5.0, 7.0]).reshape(1, 2, 1, 1)
    y, pull = jax.vjp(lambda x, k: canonical_conv(x, k, (1, 2)), x, kernel)
    dx, dk = pull(jnp.asarray([1.0, 10.0]).reshape(1, 1, 2, 1))
    np.testing.assert_array_equal(y.ravel(), [19, 43])
    np.testing.assert_array_equal(dx.ravel(), [5, 7, 50, 70])
    np.testing.assert_array_equal(dk.ravel(), [31, 42])


def test_eager_jit_and_vmap_agree():
    x, kernel, g, options = arrays("rate_and_stride", jnp.float32, b=4)
    strides, pads, rates = options.values()

    def both(x, kernel, g):
        return jax.vjp(lambda x, k: canonical_conv(x, k, strides, pads, rates), x, kernel)[1](g)

    dx, dk = both(x, kernel, g)
    for got, expected in zip(jax.jit(both)(x, kernel, g), (dx, dk), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    each = jax.vmap(both, (0, None, 0))(x[:, None], kernel, g[:, None])
    np.testing.assert_allclose(each[0][:, 0], dx, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(each[1].sum(0), dk, rtol=1e-5, atol=1e-5)


def test_bfloat16_sums_in_float32():
    """1024 products of ones: added in bfloat16 they stop at 256."""
    x, g = jnp.ones((1, 32, 32, 1), jnp.bfloat16), jnp.ones((1, 32, 32, 1), jnp.bfloat16)
    _, pull = jax.vjp(lambda k: canonical_conv(x, k), jnp.ones((1, 1, 1, 1), jnp.bfloat16))
    (dk,) = pull(g)
    assert dk.dtype == jnp.bfloat16 and float(dk[0, 0, 0, 0]) == 1024


# What conv hands to XLA on a CPU, in one of its parts at least: channels in and out, kernel, options.
OURS = "b01f_01io->b01f"
LOOPED = {
    "thin": (16, 16, (3, 3), {}),
    "strided": (8, 12, (3, 3), {"strides": 2}),
    "stem": (3, 8, (7, 7), {"strides": 2}),
    "large_kernel": (8, 8, (7, 7), {}),
    "grouped": (16, 16, (3, 3), {"groups": 4}),
    "grouped_strided": (16, 16, (3, 3), {"groups": 4, "strides": 2}),
}


def convolutions(f, *arguments):
    """The layouts of all convolutions that the CPU's program has."""
    return set(re.findall(r" convolution\(.*?dim_labels=([^,\s]+)", jax.jit(f).lower(*arguments).compile().as_text()))


@pytest.mark.parametrize("case", LOOPED)
def test_in_a_loop_every_convolution_has_the_fast_layout(case):
    c, n, (kh, kw), options = LOOPED[case]
    x = jnp.ones((3, 2, 20, 18, c))
    kernel = jnp.ones((kh, kw, c // options.get("groups", 1), n))

    def summed(function):
        def add(total, image):
            grads = jax.grad(lambda x, k: jnp.sum(function(x, k) ** 2), (0, 1))(image, kernel)
            return total + grads[1], grads[0]

        return lambda x: jax.lax.scan(add, jnp.zeros_like(kernel), x)

    assert convolutions(summed(lambda x, k: conv(x, k, **options)), x) == {OURS}
    if case == "strided":  # the search finds the others
        plain = convolutions(summed(lambda x, k: stock_conv(x, k, (2, 2), ((1, 1), (1, 1)))), x)
        assert len(plain - {OURS}) == 2


def test_each_platform_gets_its_gradients():
    x, kernel, g, options = arrays("stride", jnp.float32)
    strides, pads, rates = options.values()

    def lowered(platform):
        f = jax.jit(lambda *a: jax.vjp(lambda x, k: canonical_conv(x, k, strides, pads, rates), *a[:2])[1](a[2]))
        text = f.trace(x, kernel, g).lower(lowering_platforms=(platform,)).as_text()
        return re.findall(r"dim_numbers = (\[.*?\])x(\[.*?\])->(\[.*?\]),", text)

    plain = ("[b, 0, 1, f]", "[0, 1, i, o]", "[b, 0, 1, f]")
    assert lowered("cpu") == [plain, plain]
    for platform in ("cuda", "tpu"):
        assert len(lowered(platform)) == 2 and plain not in lowered(platform)
