"""Enlarging on the grid of a stride."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops.resize import resize
from jaxseg.ops.zoom import zoom


def test_values_by_hand():
    x = jnp.asarray([0.0, 3.0])[None, :, None]
    np.testing.assert_allclose(zoom(x, 3, (1, 6))[0, :, 0], [0, 1, 2, 3, 3, 3], atol=1e-6)
    np.testing.assert_allclose(zoom(x, 3, (2, 2))[..., 0], [[0, 1], [0, 1]], atol=1e-6)
    np.testing.assert_array_equal(zoom(x, 1, (1, 2)), x)


def test_it_is_align_corners_where_the_sizes_fit():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, 4)), jnp.float32)
    np.testing.assert_array_equal(zoom(x, 8, (17, 33)), resize(x, (17, 33), alignment="align_corners"))
    # Other sizes do not move the grid.
    np.testing.assert_array_equal(zoom(x, 8, (20, 30))[:, ::8, ::8], x[:, :, :4])


def test_what_it_refuses():
    for factor, size in ((0, (1, 1)), (2, (0, 1))):
        with pytest.raises(ValueError, match="positive"):
            zoom(jnp.zeros((2, 2, 1)), factor, size)
