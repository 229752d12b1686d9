"""Mirror padding against NumPy, wider than the image too."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops.mirror import mirror_pad, mirrored_positions


@pytest.mark.parametrize("pads", [((0, 0), (0, 0)), ((2, 1), (0, 3)), ((9, 11), (13, 8))])
@pytest.mark.parametrize("size", [(4, 5), (2, 3), (1, 2)])
def test_numpys_reflect(size, pads):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    expected = np.pad(x, ((0, 0), *pads, (0, 0)), mode="reflect")
    np.testing.assert_array_equal(mirror_pad(jnp.asarray(x), pads), expected)


def test_the_example_of_the_docstring():
    assert list(mirrored_positions(3, 2, 5)) == [2, 1, 0, 1, 2, 1, 0, 1, 2, 1]
    assert list(mirrored_positions(1, 1, 2)) == [0, 0, 0, 0]


def test_errors():
    with pytest.raises(ValueError, match="padding >= 0"):
        mirror_pad(jnp.zeros((2, 2, 1)), ((0, -1), (0, 0)))
    with pytest.raises(ValueError, match="pixels"):
        mirror_pad(jnp.zeros((0, 2, 1)), ((0, 1), (0, 0)))
