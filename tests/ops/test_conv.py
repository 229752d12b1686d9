"""Every lowering of a convolution against NumPy in float64 and against XLA's own convolution: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from jaxseg.ops.conv import conv, explicit_padding


def numpy_conv(x, kernel, strides, pads, dilation, groups):
    """The definition, one output pixel after the other, float64."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    kh, kw, m, n = kernel.shape
    padded = np.pad(x, ((0, 0), pads[0], pads[1], (0, 0)))
    oh = (padded.shape[1] - (kh - 1) * dilation - 1) // strides + 1
    ow = (padded.shape[2] - (kw - 1) * dilation - 1) // strides + 1
    y = np.zeros((x.shape[0], oh, ow, n))
    per = n // groups
    for o in range(oh):
        for p in range(ow):
            for i in range(kh):
                for j in range(kw):
                    pixel = padded[:, o * strides + i * dilation, p * strides + j * dilation]
                    for g in range(groups):
                        y[:, o, p, g * per : (g + 1) * per] += (
                            pixel[:, g * m : (g + 1) * m] @ kernel[i, j][:, g * per : (g + 1) * per]
                        )
    return y


def stock(x, kernel, strides, pads, dilation, groups):
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        pads,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision="highest",
    )


def inputs(h, w, c, n, k, groups, seed=0):
    a, b, d = jax.random.split(jax.random.key(seed), 3)
    return jax.random.normal(a, (2, h, w, c)), jax.random.normal(b, (k, k, c // groups, n)), d


# c, n, k, groups: depthwise, pointwise, dense, grouped
KINDS = {"depthwise": (5, 5, 3, 5), "pointwise": (5, 7, 1, 1), "dense": (3, 4, 3, 1), "grouped": (6, 4, 3, 2)}
CASES = [
    (7, 8, 1, 1, "SAME"),
    (7, 8, 2, 1, "SAME"),
    (8, 6, 2, 2, "SAME"),
    (9, 6, 3, 2, "SAME"),
    (5, 4, 1, 12, "SAME"),
    (7, 20, 1, 18, "SAME"),
    (1, 1, 2, 6, "SAME"),
    (9, 10, 2, 1, ((1, 1), (1, 1))),
    (9, 10, 3, 2, ((2, 1), (0, 3))),
    (8, 7, 2, 1, "VALID"),
]


EVERY = [("depthwise", *case) for case in CASES]
SOME = [
    (kind, *CASES[i]) for kind, which in (("pointwise", (1, 8)), ("dense", (2, 5, 8)), ("grouped", (1,))) for i in which
]


@pytest.mark.parametrize("kind, h, w, strides, dilation, padding", EVERY + SOME)
def test_values_and_gradients(kind, h, w, strides, dilation, padding):
    c, n, k, groups = KINDS[kind]
    x, kernel, key = inputs(h, w, c, n, k, groups)
    pads = explicit_padding(
        padding, size=(h, w), kernel_size=(k, k), strides=(strides, strides), dilation=(dilation, dilation)
    )

    @jax.jit
    def ours(x, kernel, g):
        y, vjp = jax.vjp(
            lambda x, k: conv(x, k, strides=strides, padding=padding, dilation=dilation, groups=groups), x, kernel
        )
        return y, *vjp(g)

    @jax.jit
    def theirs(x, kernel, g):
        y, vjp = jax.vjp(lambda x, k: stock(x, k, strides, pads, dilation, groups), x, kernel)
        return y, *vjp(g)

    expected = numpy_conv(x, kernel, strides, pads, dilation, groups)
    g = jax.random.normal(key, expected.shape)
    y, dx, dk = ours(x, kernel, g)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    _, dx_stock, dk_stock = theirs(x, kernel, g)
    np.testing.assert_allclose(dx, dx_stock, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(dk, dk_stock, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("c, n", [(5, 7), (9, 4)])
def test_pointwise_gradient_of_a_large_image(c, n):
    """Above LARGE_IMAGE_PX the kernel gradient takes another way, and one more with few channels out."""
    x, kernel, key = inputs(48, 47, c, n, 1, 1)
    g = jax.random.normal(key, (2, 48, 47, n))
    dx, dk = jax.jit(lambda x, k, g: jax.vjp(conv, x, k)[1](g))(x, kernel, g)
    x64, k64, g64 = (np.asarray(a, np.float64) for a in (x, kernel, g))
    np.testing.assert_allclose(dk[0, 0], np.einsum("bhwm,bhwn->mn", x64, g64), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(dx, np.einsum("bhwn,mn->bhwm", g64, k64[0, 0]), rtol=1e-5, atol=1e-5)


def test_same_padding_is_tensorflows():
    """224 with stride 2 pads (0, 1), 513 pads (1, 1); rate 2 at stride 1 pads (2, 2)."""
    same = {"kernel_size": (3, 3), "strides": (2, 2), "dilation": (1, 1)}
    assert explicit_padding("SAME", size=(224, 513), **same) == ((0, 1), (1, 1))
    rate = {"kernel_size": (3, 3), "strides": (1, 1), "dilation": (2, 2)}
    assert explicit_padding("SAME", size=(5, 5), **rate) == ((2, 2), (2, 2))


@pytest.mark.parametrize("kind", ["depthwise", "pointwise"])
def test_gradients_by_finite_differences(kind):
    c, n, k, groups = KINDS[kind]
    x, kernel, _ = inputs(4, 5, c, n, k, groups)
    check_grads(
        lambda x, k: conv(x, k, strides=2, groups=groups), (x[:1], kernel), order=1, modes=["rev"], atol=2e-2, rtol=2e-2
    )


@pytest.mark.parametrize("kind", ["depthwise", "pointwise"])
def test_eager_jit_vmap_and_leading_dimensions_agree(kind):
    c, n, k, groups = KINDS[kind]
    x, kernel, _ = inputs(6, 5, c, n, k, groups)

    def f(x):
        return conv(x, kernel, strides=2, groups=groups)

    y = f(x)
    np.testing.assert_allclose(jax.jit(f)(x), y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(f)(x), y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(f(x[0]), y[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(f(x[:, None, None])[:, 0, 0], y, rtol=1e-5, atol=1e-6)

    def kernel_gradient(x):
        return jax.grad(lambda k: jnp.sum(conv(x, k, strides=2, groups=groups) ** 2))(kernel)

    each = jnp.stack([kernel_gradient(x[i : i + 1]) for i in range(2)])
    np.testing.assert_allclose(jax.jit(jax.vmap(kernel_gradient))(x[:, None]), each, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["depthwise", "pointwise", "dense"])
def test_bfloat16_sums_in_float32(kind):
    """4096 ones added in bfloat16 stop at 256; the kernel's gradient of an image of ones is their number."""
    c, n, k, groups = KINDS[kind]
    x = jnp.ones((1, 64, 64, c), jnp.bfloat16)
    kernel = jnp.ones((k, k, c // groups, n), jnp.bfloat16)
    y, vjp = jax.vjp(lambda x, k: conv(x, k, groups=groups), x, kernel)
    dx, dk = vjp(jnp.ones_like(y))
    assert (y.dtype, dx.dtype, dk.dtype) == (jnp.bfloat16,) * 3
    np.testing.assert_allclose(np.asarray(y[0, 5, 5], np.float32), k * k * c // groups)
    np.testing.assert_allclose(np.asarray(dk[k // 2, k // 2], np.float32), 4096.0)


@pytest.mark.parametrize("kind", ["depthwise", "pointwise", "dense"])
@pytest.mark.parametrize("strides", [1, 2])
def test_batch_over_four_devices_needs_no_all_gather(kind, strides):
    """Forward and both gradients: the same values, and the only exchange is the sum of the kernel's gradient."""
    c, n, k, groups = KINDS[kind]
    x, kernel, key = inputs(9, 8, c, n, k, groups)
    x = jnp.concatenate([x, 2 * x])
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    split, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())

    def f(x, kernel, g):
        y, vjp = jax.vjp(lambda x, k: conv(x, k, strides=strides, groups=groups), x, kernel)
        return y, *vjp(g)

    g = jax.random.normal(key, jax.eval_shape(lambda: conv(x, kernel, strides=strides, groups=groups)).shape)
    compiled = jax.jit(f, out_shardings=(split, split, everywhere)).lower(
        *(jax.device_put(a, s) for a, s in ((x, split), (kernel, everywhere), (g, split)))
    )
    compiled = compiled.compile()
    hlo = compiled.as_text()
    assert "all-gather" not in hlo and "all-to-all" not in hlo and "collective-permute" not in hlo
    assert "all-reduce" in hlo
    got = compiled(*(jax.device_put(a, s) for a, s in ((x, split), (kernel, everywhere), (g, split))))
    for a, b in zip(got, f(x, kernel, g), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_each_platform_gets_its_lowering():
    """Traced once on this CPU: the CPU's program holds no convolution, the TPU's and the GPU's hold XLA's own."""
    x, kernel, _ = inputs(8, 8, 5, 5, 3, 5)
    f = jax.jit(jax.grad(lambda x, k: jnp.sum(conv(x, k, groups=5) ** 2), argnums=(0, 1)))
    text = {p: f.trace(x, kernel).lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "tpu", "cuda")}
    assert "stablehlo.convolution" not in text["cpu"] and "stablehlo.while" in text["cpu"]
    for platform in ("tpu", "cuda"):
        assert "stablehlo.convolution" in text[platform] and "stablehlo.while" not in text[platform]


def test_taps_in_the_padding_are_cut_off():
    """Rate 18 on 7 x 20: only the middle row of the kernel sees pixels, and all three columns do."""
    x, kernel, _ = inputs(7, 20, 3, 4, 3, 1)
    text = jax.jit(lambda x, k: conv(x, k, dilation=18)).lower(x, kernel).as_text()
    assert "tensor<1x3x3x4xf32>" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"padding": "valid"}, "padding must be"),
        ({"strides": 0}, "strides must be"),
        ({"dilation": (1, 2, 3)}, "dilation must be"),
        ({"groups": 2}, "do not fit"),
        ({"padding": "VALID", "dilation": 9}, "does not fit the image"),
    ],
)
def test_what_does_not_fit_raises(arguments, message):
    x, kernel, _ = inputs(8, 8, 3, 4, 3, 1)
    with pytest.raises(ValueError, match=message):
        conv(x, kernel, **arguments)


def test_mixed_types_and_empty_images_raise():
    x, kernel, _ = inputs(8, 8, 3, 4, 3, 1)
    with pytest.raises(ValueError, match="cast one of them"):
        conv(x.astype(jnp.bfloat16), kernel)
    with pytest.raises(ValueError, match="no pixels"):
        conv(x[:, :0], kernel)
