"""Resizing against hand-computed values, an independent NumPy rule in float64, and OpenCV."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxseg.ops.resize import resize


def row(values):
    return jnp.asarray(values, jnp.float32).reshape(1, 1, -1, 1)


@pytest.mark.parametrize(
    "alignment, method, size, expected",
    [
        ("align_corners", "bilinear", 5, [0, 1.5, 3, 6, 9]),
        ("half_pixel", "bilinear", 6, [0, 0.75, 2.25, 4.5, 7.5, 9]),
        ("align_corners", "bilinear", 2, [0, 9]),
        ("half_pixel", "bilinear", 1, [3]),
        ("align_corners", "bilinear", 1, [0]),
        ("half_pixel", "nearest", 6, [0, 0, 3, 3, 9, 9]),
        ("align_corners", "nearest", 5, [0, 3, 3, 9, 9]),
    ],
)
def test_by_hand(alignment, method, size, expected):
    y = resize(row([0, 3, 9]), (1, size), alignment=alignment, method=method)
    np.testing.assert_allclose(np.ravel(y), expected, atol=1e-6)
    down = resize(jnp.swapaxes(row([0, 3, 9]), 1, 2), (size, 1), alignment=alignment, method=method)
    np.testing.assert_allclose(np.ravel(down), expected, atol=1e-6)


def numpy_bilinear(x, size, alignment):
    """The hat function of every input sample at every output position, float64."""
    result = np.asarray(x, np.float64)
    for axis, out in zip((-3, -2), size, strict=True):
        n = result.shape[axis]
        at = np.arange(out) * ((n - 1) / (out - 1) if out > 1 else 0.0)
        if alignment == "half_pixel":
            at = np.clip((np.arange(out) + 0.5) * n / out - 0.5, 0, n - 1)
        hat = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n)))
        result = np.moveaxis(np.tensordot(hat, result, (1, axis)), 0, axis)
    return result


SIZES = [
    ((5, 4), (20, 16)),
    ((3, 5), (33, 47)),
    ((9, 7), (4, 3)),
    ((1, 1), (6, 5)),
    ((6, 5), (1, 7)),
    ((23, 30), (360, 479)),
    ((2, 3), (70, 90)),
]


@pytest.mark.parametrize("alignment", ["half_pixel", "align_corners"])
@pytest.mark.parametrize("size, target", SIZES)
def test_values_and_gradient_against_numpy(alignment, size, target):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    y, vjp = jax.vjp(lambda x: resize(x, target, alignment=alignment), x)
    np.testing.assert_allclose(y, numpy_bilinear(x, target, alignment), atol=2e-5)
    g = jax.random.normal(jax.random.key(1), y.shape)
    (dx,) = vjp(g)
    direction = jax.random.normal(jax.random.key(2), x.shape)
    # The map is linear: <g, A d> = <A^T g, d>.
    forward = np.sum(np.asarray(g, np.float64) * numpy_bilinear(direction, target, alignment))
    backward = np.sum(np.asarray(dx, np.float64) * np.asarray(direction, np.float64))
    assert backward == pytest.approx(forward, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_half_pixel_is_opencvs(method):
    flag = {"bilinear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST}[method]
    x = np.random.default_rng(0).normal(size=(7, 9, 3)).astype(np.float32)
    y = resize(jnp.asarray(x), (21, 36), alignment="half_pixel", method=method)
    np.testing.assert_allclose(y, cv2.resize(x, (36, 21), interpolation=flag), atol=1e-5)


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_finite_differences_eager_jit_vmap(method):
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 2))

    def f(x):
        return resize(x, (7, 5), alignment="align_corners", method=method)

    check_grads(f, (x,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)
    np.testing.assert_allclose(jax.jit(f)(x), f(x), atol=1e-6)
    np.testing.assert_allclose(jax.vmap(f)(x), f(x), atol=1e-6)
    np.testing.assert_allclose(f(x[None])[0], f(x), atol=1e-6)
    np.testing.assert_allclose(f(x[0]), f(x)[0], atol=1e-6)


def test_both_lowerings_agree():
    """The accelerators' two products, run here: lowered for this CPU they must give what the gather gives."""
    from jaxseg.ops import resize as module

    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 3))
    rows = jnp.einsum("oh,bhwc->bowc", module._matrix(5, 11, "half_pixel", "bilinear"), x)
    products = jnp.einsum("pw,bowc->bopc", module._matrix(6, 13, "half_pixel", "bilinear"), rows)
    np.testing.assert_allclose(resize(x, (11, 13), alignment="half_pixel"), products, atol=1e-5)
    text = jax.jit(lambda x: resize(x, (11, 13), alignment="half_pixel")).trace(x).lower(lowering_platforms=("tpu",))
    assert "stablehlo.gather" not in text.as_text() and "stablehlo.dot_general" in text.as_text()


@pytest.mark.parametrize("target, products", [((30, 24), 0), ((170, 24), 2)])
def test_the_gradient_gathers_where_it_can(target, products):
    """On CPUs and GPUs, up to 32 outputs an input (5 -> 170 has 68); a TPU multiplies always."""
    x = jnp.ones((2, 5, 6, 3))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(resize(x, target, alignment="half_pixel") ** 2)))
    for platform in ("cpu", "cuda", "tpu"):
        text = gradient.trace(x).lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.dot_general") == (4 if platform == "tpu" else products)


def test_bfloat16_keeps_its_type_and_same_size_is_untouched():
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 2)).astype(jnp.bfloat16)
    y = resize(x, (9, 9), alignment="align_corners")
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), numpy_bilinear(x, (9, 9), "align_corners"), atol=2e-2)
    assert resize(x, (4, 4), alignment="half_pixel") is x


@pytest.mark.parametrize(
    "arguments",
    [
        {"alignment": "corners"},
        {"alignment": "half_pixel", "method": "cubic"},
        {"alignment": "half_pixel", "size": (0, 3)},
    ],
)
def test_bad_arguments_raise(arguments):
    with pytest.raises(ValueError, match="resize|alignment"):
        resize(jnp.zeros((1, 2, 2, 1)), **({"size": (3, 3)} | arguments))
    with pytest.raises(ValueError, match="floating"):
        resize(jnp.zeros((1, 2, 2, 1), jnp.uint8), (3, 3), alignment="half_pixel")
