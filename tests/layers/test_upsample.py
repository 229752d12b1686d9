"""Each way of up-sampling against its op, and initial values that make a transposed convolution bilinear."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.layers.upsample import METHODS, Upsample
from jaxseg.ops.pooling import max_pool_with_indices, unpool
from jaxseg.ops.resize import resize

X = jax.random.normal(jax.random.key(0), (2, 3, 4, 2))


def up(layer, x=X, **arguments):
    """The result and the parameters, in one compilation."""
    y, variables = jax.jit(lambda k: layer.init_with_output(k, x, **arguments))(jax.random.key(1))
    return y, variables.get("params", {})


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"unpool"}))
def test_size_and_default_size(method):
    y, _ = up(Upsample(method, 2), size=(5, 8))
    assert y.shape == (2, 5, 8, 2)
    assert up(Upsample(method, 3))[0].shape == (2, 9, 12, 2)


@pytest.mark.parametrize("alignment", ["half_pixel", "align_corners"])
@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_resizing(method, alignment):
    y, _ = up(Upsample(method, alignment=alignment), size=(7, 8))
    np.testing.assert_allclose(y, resize(X, (7, 8), alignment=alignment, method=method), atol=1e-6)


def test_transposed_begins_as_bilinear_interpolation():
    """Inside, where no zeros are mixed in, it is the half-pixel resize; dense, by channel and fixed are the same."""
    expected = resize(X, (6, 8), alignment="half_pixel")[:, 1:-1, 1:-1]
    dense, weights = up(Upsample("transposed"))
    assert weights["kernel"].shape == (4, 4, 2, 2)
    by_channel, weights = up(Upsample("transposed", depthwise=True))
    assert weights["kernel"].shape == (4, 4, 1, 2)
    fixed, weights = up(Upsample("fixed_transposed"))
    assert not weights
    np.testing.assert_allclose(dense[:, 1:-1, 1:-1], expected, atol=1e-6)
    np.testing.assert_allclose(by_channel, dense, atol=1e-6)
    np.testing.assert_allclose(fixed, dense, atol=1e-6)


def test_other_channels_bias_and_he():
    y, weights = up(Upsample("transposed", 2, features=64, kernel_size=2, initial_kernel="he", use_bias=True))
    assert weights["kernel"].shape == (2, 2, 64, 2) and weights["bias"].shape == (64,)
    # Each output pixel sees both channels of one pixel: twice the variance of the input.
    assert float(jnp.var(y) / jnp.mean(X**2)) == pytest.approx(2, rel=0.3)


def test_offset_is_the_first_row_and_column():
    whole, _ = up(Upsample("fixed_transposed", 4, kernel_size=8, offset=0), size=(16, 20))
    part, _ = up(Upsample("fixed_transposed", 4, kernel_size=8, offset=5), size=(9, 11))
    np.testing.assert_allclose(part, whole[:, 5:14, 5:16], atol=1e-6)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_kernel_has_no_gradient(frozen):
    layer = Upsample("transposed", frozen=frozen)
    _, params = up(layer)
    gradient = jax.jit(jax.grad(lambda p, x: jnp.sum(layer.apply({"params": p}, x) ** 2), argnums=(0, 1)))(params, X)
    assert bool(jnp.any(gradient[0]["kernel"] != 0)) != frozen and bool(jnp.any(gradient[1] != 0))


def test_unpooling_and_bed_of_nails():
    values, indices = max_pool_with_indices(X, ceil=True)
    y, _ = up(Upsample("unpool"), values, size=(3, 4), indices=indices)
    np.testing.assert_array_equal(y, unpool(values, indices, (3, 4)))
    nails, _ = up(Upsample("bed_of_nails", 3))
    np.testing.assert_array_equal(nails[:, ::3, ::3], X)
    assert np.count_nonzero(nails) == X.size


def test_errors():
    for options, message in (
        ({"method": "cubic"}, "method = 'cubic' is not one of bilinear"),
        ({"alignment": "corner"}, "alignment"),
        ({"initial_kernel": "zeros"}, "initial_kernel"),
        ({"factor": 0}, "factor"),
    ):
        with pytest.raises(JaxsegError, match=message):
            Upsample(**options)
    with pytest.raises(JaxsegError, match="needs the indices"):
        up(Upsample("unpool"))
    with pytest.raises(JaxsegError, match="takes no indices"):
        up(Upsample("nearest"), indices=jnp.zeros(X.shape, jnp.int8))
    with pytest.raises(JaxsegError, match="dense"):
        up(Upsample("transposed", features=3, depthwise=True))
