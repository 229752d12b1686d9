"""The class of the largest logit equals NumPy's, ties, NaN and infinities included, in blocks of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.mesh import batch_sharding, make_mesh
from jaxseg.ops import argmax
from jaxseg.ops.argmax import class_argmax


def example(shape, dtype=np.float32, seed=0):
    """Few values, so that nearly every maximum is there several times; a few NaN and infinities."""
    rng = np.random.default_rng(seed)
    logits = rng.integers(-2, 3, shape).astype(np.float32)
    for value in (np.nan, np.inf, -np.inf):
        logits[rng.random(shape) < 0.02] = value
    return logits.astype(dtype)


@pytest.mark.parametrize("shape", [(2, 5, 7, 150), (3, 7, 25), (11, 31), (40,), (2, 3, 3, 24), (4, 1), (0, 3, 30)])
@pytest.mark.parametrize("block", [1, 200, 1 << 20])
def test_equals_numpy(shape, block, monkeypatch):
    monkeypatch.setattr(argmax, "_BLOCK", block)
    logits = example(shape)
    found = jax.jit(lambda x: class_argmax(x))(logits)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, np.argmax(logits, axis=-1))


def test_first_of_equal_maxima_and_of_nan():
    logits = np.zeros((3, 30), np.float32)
    logits[0, [5, 9]] = 3
    logits[1, [7, 8]] = np.nan
    logits[1, 3] = np.inf
    logits[2] = -np.inf
    np.testing.assert_array_equal(class_argmax(logits), [5, 7, 0])


def test_bfloat16_vmap_and_integers():
    logits = example((3, 4, 5, 40))
    half = jnp.asarray(logits, jnp.bfloat16)
    np.testing.assert_array_equal(class_argmax(half), np.argmax(logits, axis=-1))
    np.testing.assert_array_equal(jax.vmap(class_argmax)(logits), np.argmax(logits, axis=-1))
    whole = np.random.default_rng(0).integers(0, 9, (6, 33))
    np.testing.assert_array_equal(class_argmax(whole.astype(np.int32)), np.argmax(whole, axis=-1))


def test_rows_stay_on_their_devices():
    logits = example((4, 6, 5, 30))
    sharded = jax.device_put(logits, batch_sharding(make_mesh({"data": 4}), 4))
    function = jax.jit(lambda x: class_argmax(x))
    np.testing.assert_array_equal(function(sharded), np.argmax(logits, axis=-1))
    assert "all-gather" not in function.lower(sharded).compile().as_text()


@pytest.mark.parametrize("shape", [(), (3, 0)])
def test_without_a_class(shape):
    with pytest.raises(ValueError, match="\\[\\*b, c\\]"):
        class_argmax(np.zeros(shape, np.float32))
