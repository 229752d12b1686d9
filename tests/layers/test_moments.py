"""Moments of which some are known, and their gradient, against NumPy and what JAX derives."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.layers.moments import batch_moments, completed_moments, followed_by, moments_gradient


def derived(x, known, shift):
    """The same, its gradient by JAX."""
    first = 0 if known is None else len(known[0])
    rest = x[..., first:]
    axes = tuple(range(x.ndim - 1))
    made = jnp.mean(rest, axes), jnp.var(rest, axes)
    return made if known is None else followed_by(known, made)


@pytest.mark.parametrize("known", [None, 0, 2, 5])
def test_only_what_is_not_known_is_made_and_has_xs_gradient(known):
    x = 0.7 + jax.random.normal(jax.random.key(0), (3, 9, 4, 5))
    given = None if known is None else (jnp.arange(5.0)[:known], 2 + jnp.arange(5.0)[:known])
    weight = jax.random.normal(jax.random.key(1), (2, 5))
    shift = jnp.full(5, 0.5)

    def loss(of, x, given):
        mean, var = of(x, given, shift)
        return jnp.sum(weight[0] * jnp.sin(mean) + weight[1] * var**2), (mean, var)

    found, expected = (
        jax.jit(jax.grad(lambda x, given, of=of: loss(of, x, given), argnums=(0, 1), has_aux=True))(x, given)
        for of in (completed_moments, derived)
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
    (of_x, _), _ = found
    np.testing.assert_array_equal(np.abs(of_x).max((0, 1, 2)) > 0, np.arange(5) >= (known or 0))


def test_a_gradient_by_hand():
    """Values 1, 2, 3, 6: mean 3; (4 + 2 (x - 3) 2) / 4."""
    x = jnp.asarray([1.0, 2, 3, 6]).reshape(2, 2, 1)
    found = moments_gradient(x, jnp.asarray([3.0]), (jnp.asarray([4.0]), jnp.asarray([2.0])))
    np.testing.assert_allclose(np.ravel(found), [-1, 0, 1, 4])


def test_16_bit_values_have_float32_moments_and_16_bit_gradients():
    x = jnp.arange(64.0).reshape(4, 8, 2).astype(jnp.bfloat16)
    mean, var = batch_moments(x, shift=jnp.zeros(2))
    assert mean.dtype == var.dtype == jnp.float32
    np.testing.assert_allclose(var, np.var(np.arange(64.0).reshape(32, 2), 0), rtol=1e-5)
    assert jax.grad(lambda x: jnp.sum(batch_moments(x, shift=jnp.zeros(2))[1]))(x).dtype == jnp.bfloat16


def test_a_constant_map_has_no_gradient_of_its_variance():
    x = jnp.full((2, 8, 8, 1), 3.0)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(batch_moments(x, shift=jnp.zeros(1))[1])))(x)
    np.testing.assert_array_equal(gradient, 0)


def test_the_numbers_a_channel_of_a_gradient_are_made_before_the_loop_over_pixels():
    """XLA's CPU would make them, here a cosine, for each pixel anew."""
    x, of_mean, of_var = jnp.ones((2, 16, 16, 8)), jnp.ones(8), jnp.ones(8)

    def gradient(x, of_mean, of_var):
        return moments_gradient(x, 0.5 * of_mean, (jnp.cos(of_mean), jnp.cos(of_var)))

    text = jax.jit(gradient).lower(x, of_mean, of_var).compile().as_text()
    making = [part for part in text.split("\n\n") if " cosine(" in part]
    assert making
    assert not any("[2,16,16,8]" in part for part in making)
