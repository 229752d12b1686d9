"""What NVIDIA GPUs get, run on this CPU: the same values and gradients, nothing gathered over devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.ops import depthwise, phases
from jaxseg.ops.canonical import stock_kernel_gradient
from jaxseg.ops.conv import conv
from jaxseg.ops.phases import atrous_kernel_gradient, kernel_gradient_by_phases
from jaxseg.ops.pointwise import _matrix_gradient, _matrix_gradient_cuda
from jaxseg.ops.resize import resize
from jaxseg.ops.stock_conv import stock_conv
from tests.ops.arrays import normal, relative

# h, w, kernel, rates, pads: odd sizes, sizes that the rate does not divide, uneven padding, cropping, a rate that
# reaches past the image.
PHASES = {
    "same": (8, 8, (3, 3), (2, 2), ((2, 2), (2, 2))),
    "odd": (9, 7, (3, 3), (2, 2), ((2, 2), (2, 2))),
    "rest": (11, 10, (3, 3), (4, 3), ((4, 4), (3, 3))),
    "uneven": (7, 9, (3, 2), (3, 2), ((0, 5), (4, 1))),
    "cropping": (13, 12, (3, 3), (2, 3), ((-2, 1), (3, -4))),
    "far": (5, 6, (3, 3), (5, 4), ((5, 5), (4, 4))),
    "rate_of_one_axis": (6, 8, (3, 3), (1, 2), ((1, 1), (2, 2))),
}


@pytest.mark.parametrize("case", PHASES)
@pytest.mark.parametrize("gradient, tolerance", [(kernel_gradient_by_phases, 1e-14), (atrous_kernel_gradient, 1e-7)])
def test_kernel_gradient_of_a_rate_in_double_precision(case, gradient, tolerance):
    """Taps sum in float32."""
    h, w, (kh, kw), rates, pads = PHASES[case]
    with jax.enable_x64(True):
        x, kernel = normal(0, 2, h, w, 3, dtype=jnp.float64), normal(1, kh, kw, 3, 4, dtype=jnp.float64)
        options = {"pads": pads, "dilation": rates}
        g = normal(2, *stock_conv(x, kernel, **options).shape, dtype=jnp.float64)
        got, expected = gradient(x, kernel, g, **options), stock_kernel_gradient(x, kernel, g, **options)
        assert got.dtype == jnp.float64 and relative(got, expected) < tolerance


def test_kernel_gradient_of_a_rate_by_hand():
    """Rate 2 along a row of five: the taps are two pixels to the left, none, and two to the right."""
    x, g = jnp.asarray([1.0, 2, 3, 4, 5]).reshape(1, 1, 5, 1), jnp.asarray([1.0, 10, 100, 0, 1]).reshape(1, 1, 5, 1)
    got = kernel_gradient_by_phases(x, jnp.zeros((1, 3, 1, 1)), g, pads=((0, 0), (2, 2)), dilation=(1, 2))
    # 3 x 1 of the fifth, 1 x 100 of the third; 1 + 20 + 300 + 5; 3 + 40 + 500
    np.testing.assert_array_equal(np.ravel(got), [103, 326, 543])


@pytest.mark.parametrize("side, rate, way", [(65, 2, "phases"), (65, 12, "phases"), (65, 24, "taps"), (65, 36, "taps")])
def test_taps_where_padding_takes_many_products(side, rate, way, monkeypatch):
    called = []
    for name in ("taps", "phases"):
        monkeypatch.setattr(phases, f"kernel_gradient_by_{name}", lambda *_, name=name, **__: called.append(name))
    x, kernel = jnp.zeros((1, side, side, 1)), jnp.zeros((3, 3, 1, 1))
    atrous_kernel_gradient(x, kernel, x, pads=((rate, rate), (rate, rate)), dilation=(rate, rate))
    assert called == [way]


def test_a_gpus_kernel_gradient_has_no_stride():
    """XLA hands it to cuDNN's routine for kernel gradients only then; other platforms keep the stride."""
    x, kernel = normal(0, 2, 16, 16, 4), normal(1, 3, 3, 4, 4)
    f = jax.jit(jax.grad(lambda k: jnp.sum(conv(x, k, dilation=2) ** 2)))
    text = {p: f.trace(kernel).lower(lowering_platforms=(p,)).as_text() for p in ("tpu", "cuda")}
    assert "stride = [2, 2]" in text["tpu"]
    assert "stride = [2, 2]" not in text["cuda"] and text["cuda"].count("stablehlo.convolution") == 2


# c, n, kernel, options
CONVOLUTIONS = {
    "dense": (4, 5, 3, {"dilation": 2}),
    "wide": (64, 64, 3, {"dilation": 5}),
    "thin": (16, 12, 3, {}),
    "pointwise": (5, 7, 1, {}),
    "strided pointwise": (5, 7, 1, {"strides": 2}),
    "depthwise": (6, 6, 3, {"groups": 6}),
    "depthwise at a rate": (6, 6, 3, {"groups": 6, "dilation": 3}),
    "depthwise, rate and stride": (6, 6, 3, {"groups": 6, "dilation": 2, "strides": 2}),
    "grouped": (8, 4, 3, {"groups": 2}),
    "stem": (3, 8, 7, {"strides": 2}),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
def test_convolutions(kind, dtype, tolerance, cuda):
    c, n, k, options = CONVOLUTIONS[kind]
    x, kernel = normal(0, 2, 13, 10, c, dtype=dtype), normal(1, k, k, c // options.get("groups", 1), n, dtype=dtype)

    def plain(x, kernel):
        spread = {name: (value, value) for name, value in options.items() if name != "groups"}
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            spread.get("strides", (1, 1)),
            "SAME",
            rhs_dilation=spread.get("dilation", (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=options.get("groups", 1),
            precision="highest",
        )

    g = normal(2, *jax.eval_shape(plain, x, kernel).shape, dtype=dtype)
    y, backward = jax.vjp(lambda x, k: conv(x, k, **options), x, kernel)
    wide = [a.astype(jnp.float32) for a in (x, kernel, g)]
    expected, expected_backward = jax.vjp(plain, *wide[:2])
    for got, reference in zip((y, *backward(g)), (expected, *expected_backward(wide[2])), strict=True):
        assert got.dtype == dtype and relative(got.astype(jnp.float32), reference) < tolerance


@pytest.mark.parametrize("h, w", [(24, 24), (36, 24), (34, 35)])
def test_a_large_rate_in_16_bits(h, w, cuda):
    """Values and the image's gradient by phases, of two and of three pixels a side."""
    x, kernel = normal(0, 2, h, w, 8, dtype=jnp.bfloat16), normal(1, 3, 3, 8, 16, dtype=jnp.bfloat16)
    g = normal(2, 2, h, w, 16, dtype=jnp.bfloat16)
    y, backward = jax.vjp(lambda x, k: conv(x, k, dilation=12), x, kernel)
    options = {"pads": ((12, 12), (12, 12)), "dilation": (12, 12), "precision": "highest"}
    wide = [a.astype(jnp.float32) for a in (x, kernel)]
    expected, expected_backward = jax.vjp(lambda x, k: stock_conv(x, k, **options), *wide)
    for got, reference in zip((y, *backward(g)), (expected, *expected_backward(g.astype(jnp.float32))), strict=True):
        assert got.dtype == jnp.bfloat16 and relative(got.astype(jnp.float32), reference) < 1e-2


def test_depthwise_kernel_gradient_by_sums_is_that_by_rows():
    x, g = normal(0, 2, 9, 8, 5), normal(1, 2, 5, 4, 5)
    options = {"kernel_size": (3, 3), "strides": (2, 2), "pads": ((2, 2), (2, 2)), "dilation": (2, 2)}
    sums = depthwise.depthwise_kernel_gradient_by_sums(x, g, **options)
    assert relative(sums, depthwise.depthwise_kernel_gradient(x, g, **options)) < 1e-6


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-6), (jnp.bfloat16, 5e-3)])
def test_pointwise_kernel_gradient(dtype, tolerance):
    """Of 16-bit numbers a convolution's, of others a product; float32 comes out of both."""
    x, g = normal(0, 3, 5, 7, 4, dtype=dtype), normal(1, 3, 5, 7, 6, dtype=dtype)
    got = _matrix_gradient_cuda(x, g)
    assert got.dtype == jnp.float32 and relative(got, _matrix_gradient(x, g)) < tolerance
    assert ("conv_general_dilated" in str(jax.make_jaxpr(_matrix_gradient_cuda)(x, g))) == (dtype == jnp.bfloat16)


@pytest.mark.parametrize("size", [(33, 31), (4, 3), (9, 70), (5, 7), (400, 9)])
@pytest.mark.parametrize("alignment", ["half_pixel", "align_corners"])
@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_resize(size, alignment, method, cuda, monkeypatch):
    """Enlarging, shrinking, both, nothing along an axis; 400 of 5 rows are too many to gather."""
    x, g = normal(0, 2, 5, 7, 3), normal(1, 2, *size, 3)

    def both():
        y, backward = jax.vjp(lambda x: resize(x, size, alignment=alignment, method=method), x)
        return y, backward(g)[0]

    ours = both()
    jax.clear_caches()
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *a, default, **_: default(*a))
    for got, products in zip(ours, both(), strict=True):
        assert relative(got, products) < 1e-6


@pytest.mark.parametrize("kind", ["dense", "wide", "pointwise", "strided pointwise", "depthwise at a rate", "stem"])
def test_batch_over_four_devices_needs_no_all_gather(kind, cuda):
    c, n, k, options = CONVOLUTIONS[kind]
    x = normal(0, 4, 13, 10, c, dtype=jnp.bfloat16)
    kernel = normal(1, k, k, c // options.get("groups", 1), n, dtype=jnp.bfloat16)

    def f(x, kernel):
        y, backward = jax.vjp(lambda x, k: conv(x, k, **options), x, kernel)
        return backward(y)

    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    split, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    compiled = (
        jax.jit(f, in_shardings=(split, everywhere), out_shardings=(split, everywhere)).lower(x, kernel).compile()
    )
    hlo = compiled.as_text()
    assert not any(word in hlo for word in ("all-gather", "all-to-all", "collective-permute")) and "all-reduce" in hlo
    got = compiled(jax.device_put(x, split), jax.device_put(kernel, everywhere))
    for a, b in zip(got, f(x, kernel), strict=True):
        assert relative(a.astype(jnp.float32), b.astype(jnp.float32)) < 1e-2


@pytest.mark.parametrize(
    "platform, dtype, result", [("cuda", "bfloat16", "bf16"), ("cuda", "float32", "f32"), ("cpu", "bfloat16", "f32")]
)
def test_products_write_16_bits_on_gpus(platform, dtype, result):
    """Values and the image's gradient of a 1x1 convolution; elsewhere their sums are float32 until they are rounded."""
    x, kernel = jnp.zeros((2, 6, 5, 8), dtype), jnp.zeros((1, 1, 8, 4), dtype)

    def f(x):
        y, back = jax.vjp(lambda x: conv(x, kernel), x)
        return y, back(y)

    text = jax.jit(f).trace(x).lower(lowering_platforms=(platform,)).as_text()
    assert re.findall(r"dot_general.*-> tensor<[0-9x]+x(\w+)>", text) == [result] * 2


def test_a_product_that_writes_16_bits_is_the_float32_sum_rounded(cuda):
    x, kernel = normal(0, 2, 6, 5, 64, dtype=jnp.bfloat16), normal(1, 1, 1, 64, 4, dtype=jnp.bfloat16)
    wide = conv(x.astype(jnp.float32), kernel.astype(jnp.float32))
    got = conv(x, kernel)
    assert got.dtype == jnp.bfloat16
    assert relative(got.astype(jnp.float32), wide) < 2**-8
