import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.masks import valid_mask


def test_only_class_ids_are_valid():
    labels = jnp.asarray([[0, 1, 2], [255, -1, 3]], jnp.int32)
    expected = [[True, True, True], [False, False, False]]
    np.testing.assert_array_equal(valid_mask(labels, num_classes=3), expected)
    np.testing.assert_array_equal(jax.jit(lambda x: valid_mask(x, num_classes=3))(labels), expected)


def test_unsigned_and_numpy_labels():
    np.testing.assert_array_equal(valid_mask(np.asarray([0, 10, 11, 255], np.uint8), num_classes=11), [1, 1, 0, 0])


def test_floats_are_refused():
    with pytest.raises(TypeError, match="integers, not float32"):
        valid_mask(jnp.zeros((2, 2), jnp.float32), num_classes=2)
