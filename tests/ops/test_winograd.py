"""Half the products: against XLA's own convolution, in float64 to the last bits, and the transforms by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.ops import winograd
from jaxseg.ops.conv import conv
from jaxseg.ops.dense import convolve
from jaxseg.ops.lowering import Lowering, lowering
from jaxseg.ops.stock_conv import stock_conv
from tests.ops.arrays import largest

ALL = Lowering("winograd", "winograd", "winograd")
SAME = ((1, 1), (1, 1))
# h, w, columns of the kernel, rates, pads: rows that fill no tile, phases, one column, padding on one side.
CASES = {
    "same": (9, 7, 3, (1, 1), SAME),
    "valid": (14, 9, 3, (1, 1), ((0, 0), (0, 0))),
    "rates": (17, 12, 3, (2, 3), ((2, 2), (3, 3))),
    "one_column": (11, 8, 1, (1, 1), ((0, 3), (0, 0))),
    "uneven": (12, 9, 2, (3, 2), ((5, 4), (0, 3))),
    "one_row": (3, 5, 3, (1, 1), ((0, 0), (2, 0))),
    "fewer_rows_than_the_rate": (4, 6, 3, (5, 2), ((5, 5), (2, 2))),
}


def with_gradients(f, x, kernel, g):
    y, vjp = jax.vjp(f, x, kernel)
    return y, *vjp(g)


def arrays(case, dtype, c=3, n=5):
    h, w, kw, rates, pads = CASES[case]
    a, b, d = jax.random.split(jax.random.key(11), 3)
    x, kernel = jax.random.normal(a, (2, h, w, c), dtype), jax.random.normal(b, (3, kw, c, n), dtype)
    theirs = functools.partial(stock_conv, pads=pads, dilation=rates)
    g = jax.random.normal(d, jax.eval_shape(theirs, x, kernel).shape, dtype)
    return x, kernel, g, theirs, lambda x, k: convolve(x, k, pads, rates, ALL)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_in_double_precision(case, blocks, monkeypatch):
    """1e-13: the transform is exact but for rounding, so that a wrong coefficient cannot hide behind a tolerance."""
    if blocks:
        monkeypatch.setattr(winograd, "BLOCK", 1)  # each tile row alone
    with jax.enable_x64(True):
        x, kernel, g, theirs, ours = arrays(case, jnp.float64)
        with jax.disable_jit():
            found = with_gradients(ours, x, kernel, g) if not blocks else None
        if blocks:
            options = {"pads": CASES[case][4], "dilation": CASES[case][3], "precision": None}
            found = (
                jax.jit(lambda x, k: winograd.winograd_forward(x, k, **options))(x, kernel),
                jax.jit(lambda x, k, g: winograd.winograd_input_gradient(x, k, g, **options))(x, kernel, g),
                jax.jit(lambda x, k, g: winograd.winograd_kernel_gradient(x, k, g, **options))(x, kernel, g),
            )
        for got, expected in zip(found, with_gradients(theirs, x, kernel, g), strict=True):
            assert got.shape == expected.shape and got.dtype == jnp.float64
            assert largest(got, expected) < 1e-13


def test_transforms_by_hand():
    """A row of the image (1, 0, 0, 0, 0, 0) gives 1 at the point 0 alone; (0, 0, 0, 0, 0, 1) at infinity alone.

    A kernel (1, 1, 1) at 2/3 is (1 + 2/3 + 4/9) / (2 4/9 (4/9 - 9/4)) = -19/9 / (8/9 65/36) = -19 36 / (8 65).
    The third row of a tile takes nothing at 0 and infinity, at +-2/3 4/9, at +-3/2 9/4.
    """
    first = jnp.zeros((1, 8, 1, 1)).at[0, 0].set(1.0)
    np.testing.assert_array_equal(winograd._image_to_points(first, 1)[:, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0])
    last = jnp.zeros((1, 8, 1, 1)).at[0, 5].set(1.0)
    np.testing.assert_array_equal(winograd._image_to_points(last, 1)[:, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1])
    kernel = winograd._kernel_to_points(jnp.ones((3, 1, 1, 1)))[:, 0, 0, 0]
    np.testing.assert_allclose(kernel[jnp.asarray([0, 1, 5])], [1, -19 * 36 / (8 * 65), 1], rtol=1e-6)
    points = jnp.eye(6).reshape(6, 6, 1, 1, 1, 1)
    third = winograd._points_to_rows(points)[:, 2, 0, 0]
    np.testing.assert_allclose(third, [0, 4 / 9, 4 / 9, 9 / 4, 9 / 4, 0], rtol=1e-6)


def test_the_error_is_that_of_a_plain_convolution():
    """Against float64, 64 channels: at most twice the error of XLA's own in float32 (1.45 measured for 256)."""
    pads, a, b = SAME, *jax.random.split(jax.random.key(2))
    x, kernel = jax.random.normal(a, (1, 32, 32, 64)), jax.random.normal(b, (3, 3, 64, 64)) / 24
    with jax.enable_x64(True):
        exact = np.asarray(stock_conv(x.astype(jnp.float64), kernel.astype(jnp.float64), pads=pads))
    ours = np.asarray(convolve(x, kernel, pads, (1, 1), ALL), np.float64) - exact
    theirs = np.asarray(stock_conv(x, kernel, pads=pads), np.float64) - exact
    assert 0 < np.std(ours) < 2 * np.std(theirs) < 4e-6


def test_the_convolution_takes_it():
    """64 channels at 64 px: on a CPU three products and no convolution, elsewhere convolutions; to 1e-5 the same."""
    x, kernel = (
        jax.random.normal(jax.random.key(0), (4, 64, 64, 64)),
        jax.random.normal(jax.random.key(1), (3, 3, 64, 64)),
    )
    assert lowering(x.shape, kernel.shape, SAME, (1, 1)) == ALL
    ours = jax.jit(lambda *a: with_gradients(lambda x, k: conv(x, k, padding=SAME), *a))
    theirs = jax.jit(lambda *a: with_gradients(functools.partial(stock_conv, pads=SAME), *a))
    for got, expected in zip(ours(x, kernel, x), theirs(x, kernel, x), strict=True):
        assert largest(got, expected) < 1e-5
    for platform, products, convolutions in (("cpu", 3, 0), ("tpu", 0, 3), ("cuda", 0, 3)):
        text = ours.trace(x, kernel, x).lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.dot_general") == products
        assert text.count("stablehlo.convolution") == convolutions


@pytest.mark.parametrize(
    "kernel, pads, stride_rows",
    [
        ((5, 3, 64, 64), ((2, 2), (1, 1)), 64),
        ((3, 5, 64, 64), ((1, 1), (2, 2)), 64),
        ((3, 3, 64, 64), ((-1, 1), (1, 1)), 64),
    ],
)
def test_what_it_does_not_take(kernel, pads, stride_rows):
    """Five rows, five columns, cropping."""
    chosen = lowering((4, stride_rows, 64, 64), kernel, pads, (1, 1)) or Lowering()
    assert "winograd" not in chosen[:3]


def test_eager_jit_and_vmap_agree():
    x, kernel, g, _, ours = arrays("rates", jnp.float32)
    f = functools.partial(with_gradients, ours)
    for eager, jitted in zip(f(x, kernel, g), jax.jit(f)(x, kernel, g), strict=True):
        assert largest(jitted, eager) < 1e-5
    several = jax.jit(jax.vmap(f, (0, None, 0)))(x[:, None], kernel, g[:, None])
    each = [f(x[i : i + 1], kernel, g[i : i + 1]) for i in range(2)]
    for got, *expected in zip(several, *each, strict=True):
        assert largest(got, jnp.stack(expected)) < 1e-5


def test_bfloat16_sums_in_float32():
    """Ones, 64 channels: the middle sees 576, a corner 256; added in bfloat16, ones stop at 256."""
    x, kernel = jnp.ones((1, 24, 24, 64), jnp.bfloat16), jnp.ones((3, 3, 64, 2), jnp.bfloat16)
    g = jnp.ones((1, 24, 24, 2), jnp.bfloat16)
    y, dx, dk = with_gradients(lambda x, k: convolve(x, k, SAME, (1, 1), ALL), x, kernel, g)
    assert (y.dtype, dx.dtype, dk.dtype) == (jnp.bfloat16,) * 3
    assert float(y[0, 12, 12, 0]) == 576.0 and float(y[0, 0, 0, 0]) == 256.0
    assert float(dx[0, 12, 12, 0]) == 18.0 and float(dk[1, 1, 0, 0]) == 576.0


@pytest.mark.parametrize("block", [2**23, 1])
def test_a_split_batch_stays_where_it_is(block, monkeypatch):
    """Over four devices: nothing is gathered, the kernel gradient alone is summed over devices, in one place."""
    monkeypatch.setattr(winograd, "BLOCK", block)
    a, b, d = jax.random.split(jax.random.key(5), 3)
    x, kernel, g = (jax.random.normal(k, s) for k, s in ((a, (4, 12, 9, 6)), (b, (3, 3, 6, 4)), (d, (4, 12, 9, 4))))
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    split, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    options = {"pads": SAME, "dilation": (1, 1), "precision": None}

    def f(x, kernel, g):
        ours = (
            winograd.winograd_forward(x, kernel, **options),
            winograd.winograd_input_gradient(x, kernel, g, **options),
        )
        return *ours, winograd.winograd_kernel_gradient(x, kernel, g, **options)

    placed = [jax.device_put(v, s) for v, s in ((x, split), (kernel, everywhere), (g, split))]
    compiled = jax.jit(f, out_shardings=(split, split, everywhere)).lower(*placed).compile()
    text = compiled.as_text()
    assert not [move for move in ("all-gather", "all-to-all", "collective-permute") if move in text]
    assert text.count(" all-reduce(") == 1
    expected = with_gradients(functools.partial(stock_conv, pads=SAME), x, kernel, g)
    for got, right in zip(compiled(*placed), expected, strict=True):
        assert largest(got, right) < 1e-5
