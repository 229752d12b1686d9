"""Pooling against XLA's windows, a plain loop and hand-computed values; unpooling inverts it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from jaxseg.ops.local_response_norm import local_response_norm
from jaxseg.ops.pooling import (
    adaptive_average_pool,
    average_pool,
    max_pool,
    max_pool_with_indices,
    pooled_size,
    unpool,
)


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def coarse(*shape):
    """Few values, so that most windows have ties."""
    return jnp.round(normal(*shape))


@pytest.mark.parametrize(
    "length, window, stride, pads, floor, ceil",
    [
        (45, 2, 2, (0, 0), 22, 23),
        (23, 2, 2, (0, 0), 11, 12),
        (573, 2, 2, (0, 0), 286, 287),
        (173, 3, 2, (0, 0), 86, 86),
        (43, 3, 2, (0, 0), 21, 21),
        (4, 3, 2, (1, 1), 2, 3),
        # ceil((3 + 2 - 2) / 2) + 1 = 3 windows, of which the third begins at 4 = 3 + 1, in the padding behind.
        (3, 2, 2, (1, 1), 2, 2),
        (321, 3, 2, (1, 1), 161, 161),
        (1, 2, 2, (0, 0), 0, 1),
        (1, 3, 2, (0, 0), 0, 1),
        (2, 1, 2, (0, 0), 1, 1),
    ],
)
def test_number_of_windows(length, window, stride, pads, floor, ceil):
    assert pooled_size(length, window, stride, pads) == floor
    assert pooled_size(length, window, stride, pads, ceil=True) == ceil


@pytest.mark.parametrize("window, stride, pad", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (3, 2, 0), (2, 3, 1), (7, 4, 3)])
@pytest.mark.parametrize("shape", [(2, 8, 10, 3), (1, 9, 7, 2)])
def test_value_and_gradient_are_xlas(window, stride, pad, shape):
    """Ties included: XLA's gradient goes to the first maximum, row by row."""
    x = coarse(*shape)

    def xla(x):
        sides = ((0, 0), (pad, pad), (pad, pad), (0, 0))
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), sides)

    y, vjp = jax.vjp(lambda x: max_pool(x, window, strides=stride, padding=pad), x)
    expected, xla_vjp = jax.vjp(xla, x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(max_pool(x, window, strides=stride, padding=pad), expected)
    g = normal(*y.shape, seed=1)
    np.testing.assert_allclose(vjp(g)[0], xla_vjp(g)[0], atol=1e-6)


def loop_pool(x, window, stride, pad, reduce, include=None):
    """Ceil pooling of `[h, w]` as Caffe's source does it, window by window; stops at the padded image's end."""
    h, w = x.shape
    counts = [pooled_size(n, window, stride, (pad, pad), ceil=True) for n in (h, w)]
    y = np.empty(counts)
    for o, p in np.ndindex(*counts):
        top, left = o * stride - pad, p * stride - pad
        bottom, right = min(top + window, h + pad), min(left + window, w + pad)
        pixels = x[max(top, 0) : min(bottom, h), max(left, 0) : min(right, w)]
        y[o, p] = pixels.max() if reduce == "max" else pixels.sum()
        if reduce == "mean":
            y[o, p] /= (bottom - top) * (right - left) if include else pixels.size
    return y


@pytest.mark.parametrize("size", [(5, 8), (6, 7), (1, 3)])
@pytest.mark.parametrize("window, stride, pad", [(2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 1, 1)])
def test_ceil_pooling_is_caffes_loop(size, window, stride, pad):
    x = normal(*size)
    options = {"strides": stride, "padding": pad, "ceil": True}
    image = x[None, :, :, None]
    expected = loop_pool(np.asarray(x, np.float64), window, stride, pad, "max")
    np.testing.assert_allclose(max_pool(image, window, **options)[0, :, :, 0], expected, rtol=1e-6)
    for include in (True, False):
        expected = loop_pool(np.asarray(x, np.float64), window, stride, pad, "mean", include)
        y = average_pool(image, window, count_include_pad=include, **options)
        np.testing.assert_allclose(y[0, :, :, 0], expected, atol=1e-6)
    check_grads(lambda x: max_pool(x, window, **options), (image,), order=1, modes=["rev"], eps=1e-3)


@pytest.mark.parametrize("include", [True, False])
def test_the_mean_of_a_large_window(include):
    """More than 25 pixels: by products instead of a windowed sum."""
    x = normal(13, 9)
    expected = loop_pool(np.asarray(x, np.float64), 6, 4, 2, "mean", include)
    options = {"strides": 4, "padding": 2, "ceil": True, "count_include_pad": include}
    np.testing.assert_allclose(average_pool(x[None, :, :, None], 6, **options)[0, :, :, 0], expected, atol=1e-6)


def test_indices_by_hand():
    x = jnp.asarray([[1.0, 3, 0, 0, 5], [3, 0, 0, 0, 4], [2, 9, -1, -2, -3]])[None, :, :, None]
    values, indices = max_pool_with_indices(x, ceil=True)
    np.testing.assert_array_equal(values[0, :, :, 0], [[3, 0, 5], [9, -1, -3]])
    np.testing.assert_array_equal(indices[0, :, :, 0], [[1, 0, 0], [1, 0, 0]])
    assert indices.dtype == jnp.int8
    back = unpool(values, indices, (3, 5))[0, :, :, 0]
    np.testing.assert_array_equal(back, [[0, 3, 0, 0, 5], [0, 0, 0, 0, 0], [0, 9, -1, 0, -3]])
    nails = unpool(values, jnp.zeros_like(indices), (4, 6))[0, :, :, 0]
    np.testing.assert_array_equal(nails, [[3, 0, 0, 0, 5, 0], [0] * 6, [9, 0, -1, 0, -3, 0], [0] * 6])


@pytest.mark.parametrize("window, size", [(2, (8, 6)), (2, (45, 23)), (3, (7, 10)), (2, (1, 3))])
def test_unpooling_inverts_pooling(window, size):
    """What pooling took is back in its place; pooling again gives the same; and the rest is zero."""
    x = jnp.abs(normal(2, *size, 3)) + 0.1
    values, indices = max_pool_with_indices(x, window, ceil=True)
    back = unpool(values, indices, size, window=window)
    assert back.shape == x.shape
    kept = np.asarray(back) != 0
    np.testing.assert_array_equal(np.asarray(back)[kept], np.asarray(x)[kept])
    assert kept.sum() == values.size
    again, places = max_pool_with_indices(back, window, ceil=True)
    np.testing.assert_array_equal(again, values)
    np.testing.assert_array_equal(places, indices)


def test_floor_pooling_leaves_the_last_row_to_zeros():
    x = jnp.abs(normal(1, 5, 5, 2)) + 0.1
    values, indices = max_pool_with_indices(x)
    assert values.shape == (1, 2, 2, 2)
    back = unpool(values, indices, (5, 5))
    assert not np.asarray(back[:, 4]).any() and not np.asarray(back[:, :, 4]).any()


def test_gradients_of_pooling_with_indices_and_unpooling():
    x = normal(2, 5, 7, 2)
    values, indices = max_pool_with_indices(x, ceil=True)
    g = normal(*values.shape, seed=1)
    _, vjp = jax.vjp(lambda x: max_pool_with_indices(x, ceil=True)[0], x)
    np.testing.assert_array_equal(vjp(g)[0], unpool(g, indices, (5, 7)))
    check_grads(lambda v: unpool(v, indices, (5, 7)), (values,), order=2, modes=["rev"])
    picture = normal(2, 5, 7, 2, seed=2)
    # The transpose picks: <unpool(v), p> = <v, pick(p)>.
    picked = jax.grad(lambda v: jnp.vdot(unpool(v, indices, (5, 7)), picture))(values)
    np.testing.assert_allclose(jnp.vdot(picked, values), jnp.vdot(unpool(values, indices, (5, 7)), picture), rtol=1e-5)


def test_the_gradient_has_no_scatter():
    def loss(x):
        return jnp.sum(max_pool(x, 3, strides=2, padding=1)) + jnp.sum(max_pool_with_indices(x)[0])

    text = jax.jit(jax.grad(loss)).lower(normal(1, 8, 8, 2)).as_text()
    assert "scatter" not in text


def test_leading_dimensions_jit_vmap_and_bfloat16():
    x = normal(2, 3, 6, 5, 2)

    def f(x):
        values, indices = max_pool_with_indices(x, ceil=True)
        return unpool(values, indices, x.shape[-3:-1]) + adaptive_average_pool(max_pool(x, 3, padding=1, strides=1), 1)

    expected = f(x.reshape(6, 6, 5, 2)).reshape(x.shape)
    for found in (f(x), jax.jit(f)(x), jax.vmap(f)(x), jax.vmap(jax.vmap(f))(x)):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    rough = x.astype(jnp.bfloat16)
    assert f(rough).dtype == average_pool(rough, 2).dtype == local_response_norm(rough).dtype == jnp.bfloat16
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x, 3, strides=1, padding=1).astype(jnp.float32)))(rough)
    assert gradient.dtype == jnp.bfloat16


def test_a_nan_is_not_lost():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 2, 0].set(jnp.nan)
    assert np.isnan(np.asarray(max_pool(x, 2))).tolist() == [[[[False], [True]], [[False], [False]]]]


@pytest.mark.parametrize("n, bins", [(7, 3), (6, 6), (5, 2), (2, 3), (60, 6), (1, 6)])
def test_adaptive_bins_overlap_as_pytorchs(n, bins):
    x = normal(1, n, 4, 2)
    expected = [
        np.asarray(x, np.float64)[:, (i * n) // bins : -((-(i + 1) * n) // bins)].mean(axis=(1, 2)) for i in range(bins)
    ]
    y = adaptive_average_pool(x, (bins, 1))
    np.testing.assert_allclose(y[:, :, 0], np.stack(expected, axis=1), atol=1e-6)
    check_grads(lambda x: adaptive_average_pool(x, (bins, 2)), (x,), order=1, modes=["rev"])


@pytest.mark.parametrize("channels, window", [(7, 5), (3, 5), (6, 4)])
def test_local_response_norm_is_the_formula(channels, window):
    x = 30 * normal(2, 3, channels)
    exact = np.asarray(x, np.float64)
    expected = np.empty_like(exact)
    for c in range(channels):
        near = exact[..., max(c - window // 2, 0) : c + (window - 1) // 2 + 1]
        expected[..., c] = exact[..., c] / (2 + 1e-2 / window * (near**2).sum(-1)) ** 0.75
    np.testing.assert_allclose(local_response_norm(x, window, alpha=1e-2, k=2.0), expected, rtol=1e-5)
    check_grads(lambda x: local_response_norm(x, window, alpha=1e-2), (x,), order=1, modes=["rev"], rtol=1e-2)


def test_errors():
    x = normal(1, 4, 4, 2)
    with pytest.raises(ValueError, match="does not fit"):
        max_pool(x, 5)
    with pytest.raises(ValueError, match="padding"):
        max_pool(x, 2, padding=2)
    with pytest.raises(ValueError, match="floating"):
        max_pool(jnp.zeros((1, 4, 4, 2), jnp.int32), 2)
    with pytest.raises(ValueError, match="positive"):
        average_pool(x, 2, strides=0)
    with pytest.raises(ValueError, match="at most 25"):
        max_pool_with_indices(normal(1, 9, 9, 1), 6)
    values, indices = max_pool_with_indices(x)
    with pytest.raises(ValueError, match="does not pool"):
        unpool(values, indices, (6, 4))
    with pytest.raises(ValueError, match="int8"):
        unpool(values, indices.astype(jnp.int32), (4, 4))
    with pytest.raises(ValueError, match="bins"):
        adaptive_average_pool(x, 0)
