"""Convolutions of few channels: against XLA's own, the rules by hand, and what the program holds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.ops.beside import Beside, beside, convolve_beside
from jaxseg.ops.canonical import canonical_kernel_gradient, stock_kernel_gradient
from jaxseg.ops.conv import conv
from jaxseg.ops.lowering import lowering
from jaxseg.ops.narrow import Narrow, columns_of_gradient, kernel_gradient_of_columns, narrow, narrow_conv
from jaxseg.ops.stock_conv import stock_conv
from tests.ops.arrays import image_and_kernel, largest, normal

SAME = ((1, 1), (1, 1))


# h, w, kernel, strides, rates, pads: widths that no number of columns divides, padding on one side, strides and rates.
CASES = {
    "same": (9, 13, (3, 3), (1, 1), (1, 1), SAME),
    "valid": (7, 10, (2, 3), (1, 1), (1, 1), ((0, 0), (0, 0))),
    "stride": (11, 14, (3, 3), (2, 2), (1, 1), ((0, 1), (0, 1))),
    "strides": (11, 15, (5, 7), (1, 3), (1, 1), ((2, 2), (4, 1))),
    "rate": (11, 9, (3, 3), (1, 1), (2, 1), ((2, 2), (1, 1))),
    "column": (8, 9, (3, 1), (1, 1), (1, 1), ((1, 1), (0, 0))),
    "cropped": (8, 12, (3, 3), (1, 1), (1, 1), ((-1, 1), (1, -2))),
    "narrower": (5, 3, (3, 3), (1, 1), (1, 1), SAME),
}


@pytest.mark.parametrize("way", [Narrow(), Narrow(1), Narrow(0, 2), Narrow(3, 4), Narrow(1, 8)])
@pytest.mark.parametrize("case", CASES)
def test_equals_xlas_convolution(case, way):
    h, w, size, strides, rates, pads = CASES[case]
    x, kernel = image_and_kernel(h, w, 3, 5, size)
    window = {"strides": strides, "pads": pads, "dilation": rates}
    got = jax.jit(functools.partial(narrow_conv, way=way, **window))(x, kernel)
    expected = stock_conv(x, kernel, **window)
    assert got.shape == expected.shape
    assert largest(got, expected) < 1e-6


@pytest.mark.parametrize("columns", [2, 4, 8])
@pytest.mark.parametrize("case", CASES)
def test_kernel_gradient_of_columns_in_double_precision(case, columns):
    h, w, size, strides, rates, pads = CASES[case]
    window = {"strides": strides, "pads": pads, "dilation": rates}
    with jax.enable_x64(True):
        x, kernel = (a.astype(jnp.float64) for a in image_and_kernel(h, w, 3, 5, size))
        g = normal(2, *stock_conv(x, kernel, **window).shape, dtype=jnp.float64)
        got = kernel_gradient_of_columns(stock_kernel_gradient, x, kernel, g, columns=columns, **window)
        expected = stock_kernel_gradient(x, kernel, g, **window)
        assert got.shape == kernel.shape and got.dtype == jnp.float64
        assert largest(got, expected) < 1e-13


def test_kernel_gradient_of_columns_by_hand():
    """x = 1 2 3 4 5, two taps, g = 1 10 100 1000: the first tap sees 1 2 3 4, the second 2 3 4 5."""
    x, kernel = jnp.arange(1.0, 6).reshape(1, 1, 5, 1), jnp.zeros((1, 2, 1, 1))
    g = jnp.asarray([1.0, 10, 100, 1000]).reshape(1, 1, 4, 1)
    options = {"columns": 2, "strides": (1, 1), "pads": ((0, 0), (0, 0)), "dilation": (1, 1)}
    got = kernel_gradient_of_columns(stock_kernel_gradient, x, kernel, g, **options)
    np.testing.assert_array_equal(np.ravel(got), [4321, 5432])


@pytest.mark.parametrize(
    "n, rate, columns", [(1, 1, 8), (4, 1, 8), (5, 1, 4), (8, 1, 4), (9, 1, 2), (16, 1, 2), (17, 1, 1), (16, 2, 1)]
)
def test_rules_of_the_kernel_gradient(n, rate, columns):
    assert columns_of_gradient((4, 16, 16, n), rate) == columns
    assert columns_of_gradient((4, 16, 15, n), rate) == 1


@pytest.mark.parametrize("case", ["same", "valid", "rate", "column"])
def test_blocks_of_rows_and_columns_abreast(case):
    h, w, size, _, rates, pads = CASES[case]
    x, kernel = image_and_kernel(h, w, 3, 5, size)
    got = convolve_beside(x, kernel, pads=pads, dilation=rates, cut=Beside(3, Narrow(1, 4)))
    expected = stock_conv(x, kernel, pads=pads, dilation=rates)
    assert got.shape == expected.shape
    assert largest(got, expected) < 1e-6


def test_columns_abreast_have_no_rate():
    x, kernel = image_and_kernel(8, 8, 3, 5)
    with pytest.raises(ValueError, match="rate of 1 along the columns, not 2"):
        narrow_conv(x, kernel, way=Narrow(0, 2), pads=SAME, dilation=(1, 2))


@pytest.mark.parametrize(
    "c, n, rate, way",
    [
        (16, 16, 1, Narrow(0, 2)),
        (8, 8, 1, Narrow(0, 4)),
        (3, 1, 1, Narrow(1, 8)),
        (11, 12, 1, Narrow(1, 2)),
        (11, 12, 2, Narrow(9, 1)),
        (16, 17, 1, Narrow()),  # one channel out too many
        (17, 16, 1, Narrow(3)),
        (3, 32, 1, Narrow(1)),
        (3, 48, 1, Narrow()),
        (6, 32, 1, Narrow()),
        (21, 16, 2, Narrow(3)),
        (21, 80, 1, Narrow(3)),
        (21, 128, 1, Narrow()),
        (22, 48, 1, Narrow(2)),
        (22, 96, 1, Narrow()),
        (48, 12, 1, Narrow()),
    ],
)
def test_rules(c, n, rate, way):
    assert narrow(c, n, rate, 2**14) == way
    assert narrow(c, n, rate, 2**14 - 1) == Narrow()


def test_blocks_count_the_tasks_of_columns_abreast():
    """16 -> 16 at 256 px: 128 columns of 32 channels and depth 192 are one task, the 1032 of 8 blocks tasks of 512."""
    assert beside((4, 256, 256, 16), (3, 3, 16, 16), SAME, (1, 1)) == Beside(8, Narrow(0, 2))


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("c, n", [(3, 8), (16, 8), (8, 16), (21, 16)])
def test_the_convolution_takes_it(c, n, strides):
    """On a CPU: values and gradients as XLA's own; elsewhere no kernel but the given one, turned for the gradient."""
    x, kernel = image_and_kernel(128, 128 * strides, c, n, batch=strides)
    x = x[:, : 128 // strides * strides]
    of = functools.partial(conv, strides=strides, padding=SAME)
    stock = functools.partial(stock_conv, strides=(strides, strides), pads=SAME)
    g = jax.random.normal(jax.random.key(1), jax.eval_shape(stock, x, kernel).shape)

    def parts(f):
        return jax.jit(lambda x, k, g: (f(x, k), *jax.vjp(f, x, k)[1](g)))

    for got, expected in zip(parts(of)(x, kernel, g), parts(stock)(x, kernel, g), strict=True):
        assert got.dtype == jnp.float32
        assert largest(got, expected) < 1e-5


def test_the_kernel_gradient_takes_it():
    """Also of 16-bit numbers, whose two halves are summed in float32."""
    x, kernel = image_and_kernel(64, 33, 3, 16)
    g = normal(2, 2, 32, 17, 16)
    options = {"strides": (2, 2), "pads": SAME, "dilation": (1, 1)}
    of = jax.jit(functools.partial(canonical_kernel_gradient, **options))
    assert kernels(of.lower(x, kernel, g).as_text()) == ["32x9x2x32xf32"]
    expected = stock_kernel_gradient(x, kernel, g, **options)
    assert largest(of(x, kernel, g), expected) < 1e-5
    narrower = of(*(a.astype(jnp.bfloat16) for a in (x, kernel, g)))
    assert narrower.dtype == jnp.bfloat16 and largest(narrower.astype(jnp.float32), expected) < 2**-7


def kernels(text):
    """Shapes of the convolutions' kernels in a StableHLO text."""
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    return [line.split(" : (")[1].split(", ")[1].split(">")[0].removeprefix("tensor<") for line in lines]


def test_only_a_cpu_takes_it():
    x, kernel = image_and_kernel(128, 128, 8, 8, batch=1)
    assert lowering(x.shape, kernel.shape, SAME, (1, 1)).beside.narrow == Narrow(0, 4)
    for strides in (1, 2):
        many = jnp.concatenate([x] * strides**2)
        f = jax.jit(functools.partial(conv, strides=strides, padding=SAME))
        for platform, expected in (("cpu", f"3x{3 + 3 * strides}x8x32xf32"), ("tpu", "3x3x8x8xf32")):
            text = f.trace(many, kernel).lower(lowering_platforms=(platform,)).as_text()
            assert kernels(text) == [expected]


def test_vmap_bfloat16_and_second_derivatives():
    x, kernel = image_and_kernel(9, 13, 3, 5, batch=4)
    f = functools.partial(narrow_conv, way=Narrow(1, 4), pads=SAME)
    expected = stock_conv(x, kernel, pads=SAME)
    assert largest(jax.jit(jax.vmap(f, (0, None)))(x[:, None], kernel)[:, 0], expected) < 1e-6
    ones = f(jnp.ones((1, 12, 12, 64), jnp.bfloat16), jnp.ones((3, 3, 64, 1), jnp.bfloat16))
    assert ones.dtype == jnp.bfloat16
    assert float(ones[0, 6, 6, 0]) == 576.0 and float(ones[0, 0, 0, 0]) == 256.0
    ours, theirs = (
        jax.grad(lambda k, f=f: jnp.sum(jax.grad(lambda x, k: jnp.sum(f(x, k) ** 3))(x, k) ** 2))(kernel)
        for f in (f, functools.partial(stock_conv, pads=SAME))
    )
    assert largest(ours, theirs) < 1e-5


@pytest.mark.parametrize("strides", [1, 2])
def test_a_split_batch_stays_where_it_is(strides):
    """Values and image's gradient of 8 channels on four devices: as on one, and nothing is exchanged."""
    x, kernel = image_and_kernel(64 * strides, 64 * strides, 8, 8, batch=4)
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    split, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    of = functools.partial(conv, strides=strides, padding=SAME)

    def parts(x, kernel):
        y, vjp = jax.vjp(lambda x: of(x, kernel), x)
        return y, vjp(y)[0]

    f = (
        jax.jit(parts, out_shardings=split)
        .lower(jax.device_put(x, split), jax.device_put(kernel, everywhere))
        .compile()
    )
    assert "f32[3,6,8,32]" in f.as_text() or strides == 2
    assert not any(word in f.as_text() for word in ("all-gather", "all-to-all", "collective-permute", "all-reduce"))
    got = f(jax.device_put(x, split), jax.device_put(kernel, everywhere))
    for here, expected in zip(got, jax.jit(parts)(x, kernel), strict=True):
        assert largest(here, expected) < 1e-5
