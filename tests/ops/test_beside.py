"""Blocks of rows beside each other: against XLA's own convolution, and the tasks that it makes, by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.ops import beside, dense
from jaxseg.ops.beside import Beside
from jaxseg.ops.conv import conv
from jaxseg.ops.lowering import Lowering, lowering
from jaxseg.ops.stock_conv import stock_conv
from jaxseg.ops.window import gradient_pads, out_size
from tests.ops.arrays import image_and_kernel, largest

# h, w, kernel, rates, pads: rows that no number of blocks divides, padding higher than a block, none, more on one side.
CASES = {
    "same": (13, 7, (3, 3), (1, 1), ((1, 1), (1, 1))),
    "valid": (12, 9, (3, 2), (1, 1), ((0, 0), (0, 0))),
    "rate": (17, 11, (3, 3), (2, 3), ((2, 2), (3, 3))),
    "uneven": (10, 6, (4, 3), (1, 1), ((0, 5), (2, 0))),
    "much_padding": (5, 5, (3, 3), (1, 1), ((7, 6), (1, 4))),
    "row": (9, 8, (1, 3), (1, 1), ((0, 0), (1, 1))),
}


@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_whole_map(case, number):
    h, w, size, rates, pads = CASES[case]
    x, kernel = image_and_kernel(h, w, 3, 5, size)
    got = jax.jit(functools.partial(beside.convolve_beside, pads=pads, dilation=rates, cut=Beside(number)))(x, kernel)
    expected = stock_conv(x, kernel, pads=pads, dilation=rates)
    assert got.shape == expected.shape
    assert largest(got, expected) < 1e-6


@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize("case", ["same", "valid", "rate", "row"])
def test_the_input_gradient_equals_the_whole_map(case, number):
    h, w, size, rates, pads = CASES[case]
    x, kernel = image_and_kernel(h, w, 3, 5, size)
    whole = functools.partial(stock_conv, pads=pads, dilation=rates)
    g = jax.random.normal(jax.random.key(2), jax.eval_shape(whole, x, kernel).shape)
    chosen = Lowering("xla", "beside", "xla", Beside(), Beside(number))
    ours = jax.vjp(lambda x, k: dense.convolve(x, k, pads, rates, chosen), x, kernel)[1](g)
    for got, expected in zip(ours, jax.vjp(whole, x, kernel)[1](g), strict=True):
        assert got.shape == expected.shape
        assert largest(got, expected) < 1e-5


@pytest.mark.parametrize(
    "width, channels, depth, share",
    [(64, 64, 576, 1.0), (128, 64, 576, 0.5), (64, 128, 576, 0.5), (130, 64, 576, 64 / 130), (128, 32, 288, 1.0)]
    + [(260, 32, 288, 256 / 260), (520, 32, 288, 256 / 520), (32, 128, 1152, 0.5), (8, 8, 9, 1.0), (64, 128, 432, 1.0)]
    + [(1024, 144, 108, 512 * 128 / (1024 * 144))],
)
def test_largest_task(width, channels, depth, share):
    """(64 + 64) 576 and (32 + 256) 288 are the first of their row that reach 65536; (64 + 64) 432 does not.

    144 channels of depth 108: 64 x 64, 256 x 64, 256 x 128, 512 x 128.
    """
    assert beside.largest_task(width, channels, depth) == pytest.approx(share)


SAME = ((1, 1), (1, 1))


@pytest.mark.parametrize(
    "image, n, pads, number",
    [
        ((4, 64, 64, 64), 64, SAME, 2),
        ((4, 128, 128, 32), 32, SAME, 4),
        ((4, 256, 256, 32), 16, SAME, 2),
        ((4, 64, 64, 64), 128, SAME, 1),  # two tasks as it is
        ((3, 224, 224, 12), 12, SAME, 1),  # few products for what is copied
        ((1, 8, 64, 64), 64, SAME, 1),  # half of eight rows has two rows around it
        ((1, 16, 16, 32), 64, SAME, 1),  # little work
        ((4, 64, 64, 64), 64, ((-1, 1), (1, 1)), 1),  # cropped
    ],
)
def test_number_of_blocks(image, n, pads, number):
    assert beside.beside(image, (3, 3, image[-1], n), pads, (1, 1)).blocks == number


@pytest.mark.parametrize(
    "image, n, pads, number",
    [
        ((4, 64, 64, 64), 64, SAME, 2),
        ((4, 128, 128, 128), 32, SAME, 2),  # 32 -> 128: one task of 128 columns
        ((3, 112, 112, 216), 12, SAME, 8),
        ((4, 64, 64, 192), 64, SAME, 1),  # two tasks as it is
        ((4, 64, 64, 64), 64, ((3, 1), (1, 1)), 1),  # the cotangent is cropped
    ],
)
def test_number_of_blocks_of_the_input_gradient(image, n, pads, number):
    (b, h, w, c), kernel = image, (3, 3, image[-1], n)
    out = out_size((h, w), kernel[:2], pads, (1, 1))
    back = gradient_pads((h, w), out, kernel[:2], pads, (1, 1))
    assert beside.beside((b, *out, n), (3, 3, n, c), back, (1, 1)).blocks == number


def test_the_convolution_takes_it():
    """On a CPU, 32 channels: values and all gradients, and the wider map in the program."""
    x, kernel = image_and_kernel(64, 64, 32, 32)
    pads = SAME
    g = jax.random.normal(jax.random.key(1), x.shape)
    chosen = lowering(x.shape, kernel.shape, pads, (1, 1))
    assert chosen == Lowering("beside", "beside", "winograd", Beside(8), Beside(8))

    def of(f):
        return lambda x, kernel, g: (f(x, kernel), *jax.vjp(f, x, kernel)[1](g))

    ours = jax.jit(of(lambda x, k: conv(x, k, padding=pads)))
    theirs = jax.jit(of(lambda x, k: stock_conv(x, k, pads=pads)))
    for got, expected in zip(ours(x, kernel, g), theirs(x, kernel, g), strict=True):
        assert largest(got, expected) < 1e-5
    for platform, times in (("cpu", 2), ("tpu", 0), ("cuda", 0)):
        text = ours.trace(x, kernel, g).lower(lowering_platforms=(platform,)).as_text()
        wide = [line for line in text.splitlines() if "stablehlo.convolution" in line and "x528x32x" in line]
        assert len(wide) == times


def test_vmap_and_bfloat16():
    x, kernel = image_and_kernel(13, 7, 3, 5, batch=4)
    f = functools.partial(beside.convolve_beside, pads=SAME, dilation=(1, 1), cut=Beside(3))
    expected = stock_conv(x, kernel, pads=SAME)
    each = jax.jit(jax.vmap(f, (0, None)))(x[:, None], kernel)[:, 0]
    assert largest(each, expected) < 1e-6
    ones = f(jnp.ones((1, 12, 12, 64), jnp.bfloat16), jnp.ones((3, 3, 64, 1), jnp.bfloat16))
    assert ones.dtype == jnp.bfloat16
    assert float(ones[0, 6, 6, 0]) == 576.0 and float(ones[0, 0, 0, 0]) == 256.0


def test_a_split_batch_stays_where_it_is():
    x, kernel = image_and_kernel(64, 64, 32, 32, batch=4)
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    split, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    f = jax.jit(lambda x, k, g: jax.vjp(conv, x, k)[1](g)[0] + conv(x, k), out_shardings=split)
    hlo = (
        f.lower(*(jax.device_put(a, s) for a, s in ((x, split), (kernel, everywhere), (x, split)))).compile().as_text()
    )
    assert "528" in hlo
    assert not any(word in hlo for word in ("all-gather", "all-to-all", "collective-permute", "all-reduce"))
