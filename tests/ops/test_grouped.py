"""Grouped convolutions in blocks against XLA's own: values, gradients, vmap, bfloat16, platforms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxseg.ops.conv import conv
from jaxseg.ops.grouped import BLOCK_CHANNELS, FEW_GROUPS, grouped_conv


def draw(shape, channels, outputs, kernel, groups):
    a, b = jax.random.split(jax.random.key(0))
    x = jax.random.normal(a, (*shape, channels))
    return x, jax.random.normal(b, (*kernel, channels // groups, outputs))


def stock(x, kernel, *, strides, pads, dilation, groups):
    return lax.conv_general_dilated(
        *(x, kernel, strides, pads),
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision="highest",
    )


# channels, outputs, groups, kernel, strides, dilation, pads
CASES = [
    # 12 groups of 4: a block of 8 groups and one of the 4 that are left.
    (48, 48, 12, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
    # More outputs than inputs and the other way round; different strides, rates and asymmetric padding.
    (18, 36, 9, (3, 2), (2, 1), (1, 2), ((2, 0), (1, 3))),
    (36, 18, 9, (2, 3), (1, 2), (2, 1), ((0, 1), (-1, 2))),
    # Each input channel twice: groups as many as channels, two outputs each.
    (10, 20, 10, (3, 3), (2, 2), (1, 1), ((1, 1), (1, 1))),
    # Groups that are wider than a block.
    (360, 45, 9, (1, 1), (1, 1), (1, 1), ((0, 0), (0, 0))),
    # Few narrow groups.
    (6, 4, 2, (3, 3), (2, 2), (1, 1), ((1, 1), (1, 1))),
]


@pytest.mark.parametrize("channels, outputs, groups, kernel, strides, dilation, pads", CASES)
def test_values_and_gradients(channels, outputs, groups, kernel, strides, dilation, pads):
    x, w = draw((2, 9, 8), channels, outputs, kernel, groups)
    options = {"strides": strides, "dilation": dilation, "groups": groups}
    g = jax.random.normal(jax.random.key(1), jax.eval_shape(lambda: stock(x, w, pads=pads, **options)).shape)

    @jax.jit
    def both(x, w, g):
        ours, ours_back = jax.vjp(lambda x, w: conv(x, w, padding=pads, **options), x, w)
        theirs, theirs_back = jax.vjp(lambda x, w: stock(x, w, pads=pads, **options), x, w)
        return (ours, *ours_back(g)), (theirs, *theirs_back(g))

    for found, expected in zip(*both(x, w, g), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=5e-5)


def test_by_hand():
    """Two groups of one channel, two outputs each: y = (2 a, 3 a, 5 b, 7 b)."""
    x = jnp.asarray([[[[1.0, 10.0]]]])
    kernel = jnp.asarray([2.0, 3.0, 5.0, 7.0]).reshape(1, 1, 1, 4)
    np.testing.assert_array_equal(np.ravel(conv(x, kernel, groups=2)), [2, 3, 50, 70])


def test_a_batch_of_kernels_by_vmap():
    x, w = draw((2, 5, 6), 20, 20, (3, 3), 10)

    def f(x, kernel):
        return conv(x, kernel, groups=10)

    each = jnp.stack([f(x[i], s * w) for i, s in enumerate((1.0, -2.0))])
    found = jax.jit(jax.vmap(lambda x, s: f(x, s * w)))(x, jnp.asarray([1.0, -2.0]))
    np.testing.assert_allclose(found, each, rtol=1e-5, atol=5e-5)
    np.testing.assert_allclose(f(x[:, None, None], w)[:, 0, 0], f(x, w), rtol=1e-5, atol=1e-5)


def test_bfloat16():
    """Sums are float32 inside: 2304 ones added in bfloat16 would stop at 256."""
    x, w = jnp.ones((1, 3, 3, 2560), jnp.bfloat16), jnp.ones((3, 3, 256, 10), jnp.bfloat16)
    y, back = jax.vjp(functools.partial(conv, groups=10), x, w)
    dx, dw = back(jnp.ones_like(y))
    assert (y.dtype, dx.dtype, dw.dtype) == (jnp.bfloat16,) * 3
    assert float(y[0, 1, 1, 0]) == 2304.0 and float(dx[0, 1, 1, 0]) == 9.0 and float(dw[1, 1, 0, 0]) == 9.0


def test_blocks_on_a_cpu_and_xlas_elsewhere():
    x, w = draw((1, 8, 8), 64, 64, (3, 3), 16)
    window = {"strides": (1, 1), "pads": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 16}
    f = jax.jit(jax.grad(lambda x, w: jnp.sum(grouped_conv(x, w, **window) ** 2), argnums=(0, 1)))
    text = {p: f.trace(x, w).lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "tpu", "cuda")}
    assert "feature_group_count = 16" not in text["cpu"]
    # Forward, again in the backward pass, and two gradients, in two blocks each.
    blocks = 64 // BLOCK_CHANNELS
    assert text["cpu"].count("stablehlo.convolution") == blocks * 3
    for platform in ("tpu", "cuda"):
        assert "feature_group_count = 16" in text[platform] and FEW_GROUPS < 16
