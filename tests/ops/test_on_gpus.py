"""The ways of a convolution that NVIDIA GPUs get, called directly: values and gradients of XLA's own, in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.layers.conv_norm import Conv
from jaxseg.layers.upsample import Upsample
from jaxseg.ops import aligned, phases, pixel_blocks
from jaxseg.ops.apart import gradient_written
from jaxseg.ops.canonical import stock_input_gradient, stock_kernel_gradient
from jaxseg.ops.conv import conv
from jaxseg.ops.on_gpus import ways_on_gpus
from jaxseg.ops.resize import resize
from jaxseg.ops.stock_conv import stock_conv
from jaxseg.ops.widened import widened_conv
from tests.ops.arrays import normal, relative

SAME = {3: ((1, 1), (1, 1)), 7: ((3, 3), (3, 3))}


# h, w, kernel, rates: three pixels a phase, the last phases with fewer; two, where products are made; rows and columns
# of different rates; a column of pixels; one pixel a phase.
@pytest.mark.parametrize(
    "h, w, k, rates",
    [
        (65, 65, (3, 3), (24, 24)),
        (26, 30, (3, 3), (13, 15)),
        (33, 60, (3, 3), (18, 15)),
        (39, 39, (5, 3), (13, 13)),
        (24, 12, (3, 1), (12, 12)),
        (13, 14, (3, 3), (14, 14)),
    ],
)
def test_convolution_by_phases(h, w, k, rates):
    x, kernel, g = normal(0, 2, h, w, 4), normal(1, *k, 4, 3), normal(2, 2, h, w, 3)
    pads = tuple((d * (n // 2),) * 2 for d, n in zip(rates, k, strict=True))
    options = {"pads": pads, "dilation": rates, "precision": "highest"}
    ours = {"dilation": rates, "precision": "highest"}
    assert relative(phases.conv_by_phases(x, kernel, **ours), stock_conv(x, kernel, **options)) < 1e-6
    got, expected = (
        phases.input_gradient_by_phases(x, kernel, g, **ours),
        stock_input_gradient(x, kernel, g, **options),
    )
    assert relative(got, expected) < 1e-6


def test_product_of_a_phase_by_hand():
    """Two pixels in a row: each output reads its own by the middle tap and the other by the tap on its side."""
    x = jnp.asarray([1.0, 10.0]).reshape(1, 1, 2, 1)
    kernel = jnp.asarray([2.0, 3.0, 5.0]).reshape(1, 3, 1, 1)
    np.testing.assert_array_equal(np.ravel(phases._by_product(x, kernel, "highest")), [3 + 50, 2 + 30])


# h, w, kernel, strides, pads: odd and even sizes, uneven padding, cropping, a kernel of one block, a stride of one axis
BLOCKS = {
    "stem": (33, 30, (7, 7), (2, 2), SAME[7]),
    "tensorflow": (32, 33, (3, 3), (2, 2), ((0, 1), (1, 1))),
    "one axis": (17, 23, (5, 3), (2, 1), ((2, 2), (1, 1))),
    "one block": (16, 16, (2, 2), (2, 2), ((0, 0), (0, 0))),
    "cropping": (16, 15, (3, 7), (3, 2), ((-2, 1), (3, -4))),
}


@pytest.mark.parametrize("case", BLOCKS)
def test_convolution_of_pixel_blocks(case):
    h, w, k, strides, pads = BLOCKS[case]
    x, kernel = normal(0, 2, h, w, 3), normal(1, *k, 3, 5)
    options = {"strides": strides, "pads": pads, "precision": "highest"}
    expected = stock_conv(x, kernel, **options)
    g = normal(2, *expected.shape)
    assert relative(pixel_blocks.conv_of_blocks(x, kernel, **options), expected) < 1e-6
    got = pixel_blocks.kernel_gradient_of_blocks(x, kernel, g, **options)
    assert relative(got, stock_kernel_gradient(x, kernel, g, **options)) < 1e-6


@pytest.mark.parametrize("c, n", [(12, 21), (16, 5), (3, 8), (8, 16)])
def test_channels_in_eights(c, n):
    """The convolution inside has multiples of eight; what comes out is of the shapes that went in."""
    x, kernel = normal(0, 2, 9, 8, c), normal(1, 3, 3, c, n)
    options = {"strides": (2, 1), "pads": SAME[3], "precision": "highest"}
    y = stock_conv(x, kernel, **options)
    g = normal(2, *y.shape)
    ours = (
        functools.partial(aligned.aligned_conv, **options),
        functools.partial(aligned.aligned_input_gradient, **options),
        functools.partial(aligned.aligned_kernel_gradient, **options),
    )
    stock = (
        functools.partial(stock_conv, **options),
        functools.partial(stock_input_gradient, **options),
        functools.partial(stock_kernel_gradient, **options),
    )
    given = ((x, kernel), (x, kernel, g), (x, kernel, g))
    for f, reference, arrays in zip(ours, stock, given, strict=True):
        assert relative(f(*arrays), reference(*arrays)) < 1e-6
        (equation,) = [e for e in jax.make_jaxpr(f)(*arrays).eqns if e.primitive.name == "conv_general_dilated"]
        dimensions = equation.params["dimension_numbers"]
        assert equation.invars[1].aval.shape[dimensions.rhs_spec[1]] % 8 == 0 or f is ours[2]
        assert equation.outvars[0].aval.shape[dimensions.out_spec[1]] % 8 == 0


# shape of x, of the kernel, strides, rate, dtype -> names of the functions
CHOICES = {
    "plain": ((2, 32, 32, 64), (3, 3, 64, 64), 1, 1, "bfloat16", ("", "", "")),
    "float32": ((2, 32, 32, 12), (3, 3, 12, 5), 1, 1, "float32", ("", "", "")),
    "odd channels": (
        (2, 32, 32, 12),
        (3, 3, 12, 16),
        1,
        1,
        "bfloat16",
        ("aligned_conv", "aligned_input_gradient", "aligned_kernel_gradient"),
    ),
    "stem": (
        (2, 32, 32, 3),
        (7, 7, 3, 64),
        2,
        1,
        "float16",
        ("conv_of_blocks", "aligned_input_gradient", "kernel_gradient_of_blocks"),
    ),
    "strided": ((2, 32, 32, 64), (3, 3, 64, 64), 2, 1, "bfloat16", ("", "", "")),
    "small rate": ((2, 65, 65, 64), (3, 3, 64, 64), 1, 4, "bfloat16", ("", "", "atrous_kernel_gradient")),
    "small rate, float32": ((2, 65, 65, 64), (3, 3, 64, 64), 1, 4, "float32", ("", "", "atrous_kernel_gradient")),
    "large rate": (
        (2, 65, 65, 64),
        (3, 3, 64, 64),
        1,
        12,
        "bfloat16",
        ("conv_by_phases", "input_gradient_by_phases", "atrous_kernel_gradient"),
    ),
    "too many pixels": ((2, 50, 50, 64), (3, 3, 64, 64), 1, 24, "bfloat16", ("", "", "atrous_kernel_gradient")),
}


@pytest.mark.parametrize("case", CHOICES)
def test_what_is_chosen(case):
    x, kernel, stride, rate, dtype, expected = CHOICES[case]
    pad = rate * (kernel[0] // 2)
    given = jax.ShapeDtypeStruct(x, dtype), jax.ShapeDtypeStruct(kernel, dtype)
    ways = ways_on_gpus(*given, (stride, stride), ((pad, pad), (pad, pad)), (rate, rate))
    assert tuple(way["cuda"].func.__name__ if way else "" for way in ways) == expected


def test_phases_need_an_output_of_the_images_size():
    x, kernel = jax.ShapeDtypeStruct((1, 65, 65, 8), "bfloat16"), jax.ShapeDtypeStruct((3, 3, 8, 8), "bfloat16")
    assert phases.can_use_phases(x, kernel, ((12, 12), (12, 12)), (12, 12))
    assert not phases.can_use_phases(x, kernel, ((0, 0), (0, 0)), (12, 12))
    assert not phases.can_use_phases(x, kernel, ((12, 12), (11, 13)), (12, 12))
    assert not phases.can_use_phases(x, kernel, ((12, 12), (1, 1)), (12, 1))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_widened_convolution(dtype, request):
    """Float32 values; gradients of float32 convolutions, on a GPU those of 16-bit ones."""
    x, kernel, g = normal(0, 2, 9, 8, 16, dtype=dtype), normal(1, 3, 3, 16, 5), normal(2, 2, 9, 8, 5)

    def wide(x, kernel):
        return conv(x.astype(jnp.float32), kernel, dilation=2)

    def run():
        jax.clear_caches()
        y, backward = jax.vjp(lambda x, kernel: widened_conv(x, kernel, dilation=2), x, kernel)
        return y, *backward(g)

    expected, expected_backward = jax.vjp(wide, x, kernel)
    for tolerance in (1e-6, 5e-3):
        y, of_x, of_kernel = run()
        assert (y.dtype, of_x.dtype, of_kernel.dtype) == (jnp.float32, dtype, jnp.float32)
        np.testing.assert_array_equal(y, expected)
        of = expected_backward(g)
        assert relative(of_x.astype(jnp.float32), of[0].astype(jnp.float32)) < tolerance
        assert relative(of_kernel, of[1]) < tolerance
        if tolerance == 1e-6:
            request.getfixturevalue("cuda")
    assert relative(of_kernel, of[1]) > 1e-4  # the GPU's was rounded


def barriers(f, *arguments, platform):
    return jax.jit(f).trace(*arguments).lower(lowering_platforms=(platform,)).as_text().count("optimization_barrier")


@pytest.mark.parametrize("platform, number", [("cuda", 1), ("tpu", 0), ("cpu", 0)])
def test_a_gradient_is_written_on_gpus_alone(platform, number):
    x = normal(0, 4)
    assert barriers(jax.grad(lambda x: jnp.sum(gradient_written(x) ** 2)), x, platform=platform) == number
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(gradient_written(x) ** 2))(x), 2 * x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "layer", [functools.partial(Conv, 3, 3), functools.partial(Upsample, "transposed", 2, features=3)]
)
def test_a_gradient_is_written_before_a_bias_sums_it(layer, dtype):
    """Whatever the type of the image, as it comes from the normalisation or from another layer."""
    x = normal(0, 1, 4, 4, 2)

    def number(platform, use_bias):
        module = layer(use_bias=use_bias, dtype=dtype)
        params = module.init(jax.random.key(0), x)
        total = jax.grad(lambda params: jnp.sum(module.apply(params, x).astype(jnp.float32) ** 2))
        return barriers(total, params, platform=platform)

    assert number("cuda", True) == number("cuda", False) + 1
    assert number("tpu", True) == number("tpu", False)


def test_a_gpu_writes_enlarged_logits_once():
    """And not what a network enlarges on its way, which is of its own type."""
    f = functools.partial(resize, size=(8, 8), alignment="half_pixel")
    wide, narrow = (barriers(f, jnp.zeros((1, 4, 4, 2), dtype), platform="cuda") for dtype in ("float32", "bfloat16"))
    assert wide == narrow + 1
