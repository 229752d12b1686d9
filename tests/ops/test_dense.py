"""Convolutions of a large rate on a small map: products of each tap with its pixels, against XLA's own convolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.ops import dense, thin
from jaxseg.ops.conv import conv
from jaxseg.ops.lowering import Lowering, lowering
from jaxseg.ops.window import useful_share
from tests.ops.arrays import largest


def stock(x, kernel, pads, dilation):
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        pads,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )


def with_gradients(f, x, kernel, g):
    y, vjp = jax.vjp(f, x, kernel)
    return y, *vjp(g)


# h, w, c, n, kernel, rates, pads: all odd or uneven somewhere; a blind tap; more channels in or out; cropping.
CASES = {
    "rate12": (16, 17, 3, 2, (3, 3), (12, 12), ((12, 12), (12, 12))),
    "uneven_padding": (9, 11, 2, 5, (3, 3), (4, 6), ((5, 3), (2, 9))),
    "kernel_4x2": (12, 10, 2, 3, (4, 2), (3, 5), ((6, 4), (1, 5))),
    "blind_taps": (5, 6, 2, 3, (5, 3), (4, 7), ((8, 8), (7, 7))),
    "cropping": (15, 14, 3, 2, (3, 3), (3, 2), ((-2, 5), (3, -1))),
    "more_output_than_image": (4, 5, 2, 2, (3, 3), (2, 2), ((6, 7), (5, 8))),
}


WAYS = [Lowering("taps", "taps", "taps"), Lowering("shifts", "xla", "rows"), Lowering("shifts", "xla", "shifts")]


@pytest.mark.parametrize("chosen", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, chosen, monkeypatch):
    monkeypatch.setattr(thin, "BLOCK", 1400)  # several blocks of a few rows
    h, w, c, n, (kh, kw), rates, pads = CASES[case]
    a, b, d = jax.random.split(jax.random.key(3), 3)
    x, kernel = jax.random.normal(a, (2, h, w, c)), jax.random.normal(b, (kh, kw, c, n))
    theirs = functools.partial(stock, pads=pads, dilation=rates)
    g = jax.random.normal(d, jax.eval_shape(theirs, x, kernel).shape)
    dense._vjp_backward.clear_cache()  # it was traced with the other size of blocks
    got = jax.jit(lambda *a: with_gradients(lambda x, k: dense.convolve(x, k, pads, rates, chosen), *a))(x, kernel, g)
    dense._vjp_backward.clear_cache()
    expected_all = jax.jit(lambda *a: with_gradients(theirs, *a))(x, kernel, g)
    for ours, expected in zip(got, expected_all, strict=True):
        assert ours.shape == expected.shape
        assert largest(ours, expected) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_values_by_shifts(case):
    """Of more channels than there are elsewhere in this file, and of images one by one."""
    h, w, _, n, (kh, kw), rates, pads = CASES[case]
    a, b = jax.random.split(jax.random.key(4))
    x, kernel = jax.random.normal(a, (2, h, w, 40)), jax.random.normal(b, (kh, kw, 40, n))
    ours = functools.partial(thin.forward_by_shifts, pads=pads, dilation=rates, precision=None)
    expected = stock(x, kernel, pads, rates)
    assert largest(ours(x, kernel), expected) < 1e-5
    assert largest(jax.vmap(ours, in_axes=(0, None))(x[:, None], kernel)[:, 0], expected) < 1e-5


def test_the_kernel_gradient_by_shifts_is_a_product_that_needs_no_transposition():
    """XLA's CPU gives one whose left side is transposed to a routine that asks for memory many times a product."""
    x, kernel, g = jnp.ones((2, 32, 32, 64)), jnp.ones((3, 3, 64, 8)), jnp.ones((2, 32, 32, 8))
    ours = functools.partial(thin.kernel_gradient_by_shifts, pads=((1, 1), (1, 1)), dilation=(1, 1), precision=None)
    text = jax.jit(ours).lower(x, kernel, g).compile().as_text()
    (product,) = [line for line in text.splitlines() if " dot(" in line and "[2,72,64]" in line]
    assert "lhs_contracting_dims={2}" in product and "rhs_contracting_dims={1}" in product


def test_share_of_useful_products():
    """By hand: 20 + 32 + 20 of 96; without padding all; and by counting ones: the mean of a convolution of ones."""
    assert useful_share((32, 32), (3, 3), ((12, 12), (12, 12)), (12, 12)) == 0.75**2
    assert useful_share((7, 9), (3, 2), ((0, 0), (0, 0)), (2, 3)) == 1.0
    pads, rates = ((5, 3), (2, 9)), (4, 6)
    seen = stock(jnp.ones((1, 9, 11, 1)), jnp.ones((3, 3, 1, 1)), pads, rates)
    np.testing.assert_allclose(useful_share((9, 11), (3, 3), pads, rates), np.mean(seen) / 9, rtol=1e-6)


def routed(c=64, n=64, h=12, w=11):
    """A convolution that conv hands to this lowering on a CPU."""
    a, b, d = jax.random.split(jax.random.key(5), 3)
    x, kernel = jax.random.normal(a, (4, h, w, c)), jax.random.normal(b, (3, 3, c, n))
    return x, kernel, jax.random.normal(d, (4, h, w, n))


def test_each_platform_gets_its_lowering():
    """Rate 5 on 12 x 11 pixels: products on the CPU, of the kernel gradient on GPUs too, XLA's convolution elsewhere;
    rate 1 is XLA's on every platform."""
    x, kernel, g = routed()

    def lowered(rate, platform):
        f = jax.jit(lambda x, k, g: with_gradients(lambda x, k: conv(x, k, dilation=rate), x, k, g))
        return f.trace(x, kernel, g).lower(lowering_platforms=(platform,)).as_text()

    text = lowered(5, "cpu")
    assert "stablehlo.convolution" not in text and text.count("stablehlo.dot_general") == 27
    for rate, platform, products in ((5, "tpu", 0), (5, "cuda", 9), (1, "cuda", 0), (1, "cpu", 0)):
        text = lowered(rate, platform)
        assert "stablehlo.convolution" in text and text.count("stablehlo.dot_general") == products


@pytest.mark.parametrize(
    "h, c, n, rate, chosen",
    [
        (32, 2048, 256, 12, ("taps", "taps", "taps")),
        (32, 64, 64, 6, ("taps", "taps", "winograd")),
        (32, 64, 64, 4, ("winograd", "winograd", "winograd")),
        (33, 320, 256, 6, ("taps", "taps", "winograd")),
        (41, 2048, 21, 24, ("taps", "taps", "taps")),
        (41, 2048, 21, 12, ("shifts", "xla", "shifts")),
        (32, 2048, 15, 24, ("shifts", "xla", "shifts")),
        (64, 512, 21, 1, ("shifts", "beside", "shifts")),
        (64, 480, 21, 1, ("winograd", "beside", "shifts")),  # 23 channels in for one out
        (64, 1024, 33, 1, ("winograd", "xla", "shifts")),  # 33 are not few
        (64, 144, 12, 1, ("shifts", "xla", "shifts")),
        (64, 156, 13, 1, ("shifts", "xla", "shifts")),
        (64, 116, 13, 1, ("winograd", "xla", "shifts")),
        (64, 12, 1, 1, ("shifts", "xla", "shifts")),
        (64, 48, 12, 1, ("shifts", "xla", "shifts")),
        (64, 47, 12, 1, ("beside", "xla", "shifts")),
        (64, 31, 4, 1, ("xla", "xla", "shifts")),
        (64, 32, 4, 1, ("shifts", "xla", "shifts")),
        (64, 3, 48, 1, ("xla", "xla", "rows")),
        (64, 256, 42, 1, ("winograd", "winograd", "shifts")),
        (64, 20, 12, 1, ("xla", "xla", "shifts")),
        (64, 16, 16, 1, ("xla", "xla", "rows")),
        (64, 30, 40, 1, ("beside", "beside", "rows")),
        (64, 32, 16, 1, ("beside", "xla", "shifts")),
        (64, 96, 48, 1, ("winograd", "winograd", "shifts")),
        (64, 64, 48, 1, ("winograd", "beside", "shifts")),
        (64, 320, 112, 1, ("winograd", "winograd", "winograd")),
        (64, 128, 32, 1, ("winograd", "beside", "winograd")),
        (64, 16, 64, 1, ("xla", "beside", "winograd")),
        (13, 16, 16, 1, ("xla", "xla", "xla")),
        (13, 48, 12, 1, ("shifts", "xla", "xla")),
        (7, 512, 512, 1, ("xla", "winograd", "winograd")),  # 98 pixels
        (5, 1024, 512, 1, ("xla", "xla", "xla")),  # two tiles of four rows for five
    ],
)
def test_the_rule(h, c, n, rate, chosen):
    """Shares 0.56, 0.77, 0.84 of 32 px; 0.77 of 33; 0.37 and 0.65 of 41; 0.25. Filled up: 48, 48, 32 and 48 rows."""
    pads = ((rate, rate), (rate, rate))
    got = lowering((2, h, h, c), (3, 3, c, n), pads, (rate, rate))
    assert (got or Lowering())[:3] == chosen


@pytest.mark.parametrize("c, n, side, rate", [(64, 64, 12, 5), (2, 3, 64, 1), (6, 3, 64, 1), (36, 3, 64, 1)])
def test_batch_over_four_devices_needs_no_all_gather(c, n, side, rate):
    x, kernel, g = routed(c, n, side, side)
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    split, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())

    def f(x, kernel, g):
        return with_gradients(lambda x, k: conv(x, k, dilation=rate), x, kernel, g)

    arrays = [jax.device_put(a, s) for a, s in ((x, split), (kernel, everywhere), (g, split))]
    compiled = jax.jit(f, out_shardings=(split, split, everywhere)).lower(*arrays).compile()
    hlo = compiled.as_text()
    assert not any(word in hlo for word in ("all-gather", "all-to-all", "collective-permute"))
    assert "all-reduce" in hlo
    assert ("while" in hlo) == (
        rate == 1
    )  # the kernel gradient by rows or shifts is a loop; one sum over devices, after it
    pads, rates = ((rate, rate), (rate, rate)), (rate, rate)
    theirs = jax.jit(lambda *a: with_gradients(lambda x, k: stock(x, k, pads, rates), *a))(x, kernel, g)
    for ours, expected in zip(compiled(*arrays), theirs, strict=True):
        assert largest(ours, expected) < 1e-5


def test_eager_jit_and_vmap_agree():
    x, kernel, g = routed(64, 64, 7, 8)

    def f(x, g):
        return with_gradients(lambda x, k: conv(x, k, dilation=4), x, kernel, g)

    for eager, jitted in zip(f(x, g), jax.jit(f)(x, g), strict=True):
        assert largest(jitted, eager) < 1e-5
    each = jax.jit(lambda x, g: [f(x[i : i + 1], g[i : i + 1]) for i in range(4)])(x, g)
    for ours, *expected in zip(jax.jit(jax.vmap(f))(x[:, None], g[:, None]), *each, strict=True):
        assert largest(ours, jnp.stack(expected)) < 1e-5


def test_bfloat16_sums_in_float32():
    """Ones: the middle pixel of 24 x 24 sees nine taps of 64 at rate 8, the middle tap all 576 pixels, a corner 256.

    Added in bfloat16, ones stop at 256.
    """
    x, kernel = jnp.ones((1, 24, 24, 64), jnp.bfloat16), jnp.ones((3, 3, 64, 64), jnp.bfloat16)
    g = jnp.ones_like(x)
    y, dx, dk = jax.jit(lambda *a: with_gradients(lambda x, k: conv(x, k, dilation=8), *a))(x, kernel, g)
    assert (y.dtype, dx.dtype, dk.dtype) == (jnp.bfloat16,) * 3
    assert float(y[0, 12, 12, 0]) == float(dx[0, 12, 12, 0]) == 576.0
    assert float(dk[1, 1, 0, 0]) == 576.0 and float(dk[0, 0, 0, 0]) == 256.0
