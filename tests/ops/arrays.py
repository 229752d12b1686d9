"""Random arrays and their differences, for the tests of operations."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def relative(a, b):
    """`|a - b| / |b|`, of the whole arrays."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def largest(a, b):
    """The largest difference, over the largest of b."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    return np.max(np.abs(a - b)) / np.max(np.abs(b))


def image_and_kernel(h, w, c, n, size=(3, 3), batch=2):
    return normal(0, batch, h, w, c), normal(1, *size, c, n)
