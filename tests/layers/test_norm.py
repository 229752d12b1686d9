"""Batch norm against NumPy in float64, with the running statistics and the gradient."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.layers.moments import batch_moments
from jaxseg.layers.norm import BatchNorm, NormOptions, StackNorm
from jaxseg.layers.stack import Stack


def variables(c, scale=1.0, bias=0.0, mean=0.0, var=1.0):
    def full(value):
        return jnp.full((c,), value, jnp.float32)

    return {
        "params": {"scale": full(scale), "bias": full(bias)},
        "batch_stats": {"mean": full(mean), "var": full(var)},
    }


def test_training_by_hand():
    """Values 1, 2, 3, 6: mean 3, variance 3.5, unbiased 14/3."""
    x = jnp.asarray([1.0, 2.0, 3.0, 6.0]).reshape(2, 2, 1, 1)
    layer = BatchNorm(NormOptions(momentum=0.75, epsilon=0.5))
    y, updated = layer.apply(variables(1, scale=2.0, bias=1.0, mean=5.0), x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(np.ravel(y), [-1, 0, 1, 4], rtol=1e-6)  # 1 + 2 (x - 3) / sqrt(3.5 + 0.5)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.75 * 5 + 0.25 * 3)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.75 * 1 + 0.25 * 14 / 3, rtol=1e-6)


@pytest.mark.parametrize("train", [False, True])
def test_running_statistics_are_used_in_eval_and_when_frozen(train):
    x = jnp.asarray([1.0, 2.0, 3.0, 6.0]).reshape(4, 1, 1, 1)
    layer = BatchNorm(NormOptions(epsilon=0.0, frozen=train))
    y, updated = layer.apply(variables(1, mean=1.0, var=4.0), x, train, mutable=["batch_stats"])
    np.testing.assert_allclose(np.ravel(y), [0, 0.5, 1, 2.5], rtol=1e-6)
    assert float(updated["batch_stats"]["mean"][0]) == 1.0 and float(updated["batch_stats"]["var"][0]) == 4.0


def test_initialisation_leaves_the_running_statistics_alone():
    x = 5 + jax.random.normal(jax.random.key(0), (2, 3, 3, 2))
    stats = BatchNorm().init(jax.random.key(0), x, True)["batch_stats"]
    np.testing.assert_array_equal(stats["mean"], [0, 0])
    np.testing.assert_array_equal(stats["var"], [1, 1])


def test_variance_of_a_large_mean():
    """Mean 1000, deviation 0.1: E[x^2] - E[x]^2 in float32 is lost; with the running mean as shift it is not."""
    x = 1000 + 0.1 * jax.random.normal(jax.random.key(0), (4096, 1))
    exact = np.var(np.asarray(x, np.float64))
    _, shifted = batch_moments(x, shift=jnp.asarray([999.9]))
    _, unshifted = batch_moments(x, shift=jnp.asarray([0.0]))
    np.testing.assert_allclose(shifted[0], exact, rtol=1e-3)
    assert abs(float(unshifted[0]) - exact) > 0.1 * exact
    assert float(unshifted[0]) >= 0


def test_gradient_is_the_textbooks():
    """dx = scale / sigma (g - mean(g) - x_hat mean(g x_hat)), whatever the running mean is."""
    x = np.asarray(jax.random.normal(jax.random.key(0), (3, 4, 5, 2)), np.float64) * 2 + 1
    g = np.asarray(jax.random.normal(jax.random.key(1), x.shape), np.float64)
    sigma = np.sqrt(x.var((0, 1, 2)) + 1e-5)
    hat = (x - x.mean((0, 1, 2))) / sigma
    expected = 1.5 / sigma * (g - g.mean((0, 1, 2)) - hat * (g * hat).mean((0, 1, 2)))

    def f(x):
        return BatchNorm().apply(variables(2, scale=1.5, mean=0.7), x, True, mutable=["batch_stats"])[0]

    dx = jax.jit(lambda x, g: jax.vjp(f, x)[1](g)[0])(jnp.asarray(x, jnp.float32), jnp.asarray(g, jnp.float32))
    np.testing.assert_allclose(dx, expected, atol=2e-6)


def test_bfloat16_statistics_are_float32():
    x = (3 + jax.random.normal(jax.random.key(0), (4, 32, 32, 3))).astype(jnp.bfloat16)
    y, updated = BatchNorm(dtype=jnp.bfloat16).apply(variables(3), x, True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16 and updated["batch_stats"]["mean"].dtype == jnp.float32
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * exact.mean((0, 1, 2)), rtol=1e-5)


def test_statistics_run_over_the_global_batch():
    """Four devices with one image each: the same as one device with all four, images of very different means."""
    x = jax.random.normal(jax.random.key(0), (4, 3, 3, 2)) + 10 * jnp.arange(4.0).reshape(4, 1, 1, 1)
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))

    def f(x):
        return BatchNorm().apply(variables(2), x, True, mutable=["batch_stats"])

    y, updated = f(x)
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    y4, updated4 = jax.jit(f)(split)
    np.testing.assert_allclose(y4, y, atol=1e-5)
    for name in ("mean", "var"):
        np.testing.assert_allclose(updated4["batch_stats"][name], updated["batch_stats"][name], rtol=1e-5)
    assert "all-gather" not in jax.jit(f).lower(split).compile().as_text()


def test_batch_statistics_at_test_leave_the_running_ones():
    x = 2 + jax.random.normal(jax.random.key(0), (3, 4, 5, 2))
    options = NormOptions(batch_at_test=True)
    trained, _ = BatchNorm(options).apply(variables(2), x, True, mutable=["batch_stats"])
    tested, updated = BatchNorm(options).apply(variables(2), x, False, mutable=["batch_stats"])
    np.testing.assert_array_equal(tested, trained)
    assert np.abs(tested - BatchNorm().apply(variables(2), x, False)).max() > 0.5
    jax.tree.map(np.testing.assert_array_equal, dict(updated), {"batch_stats": variables(2)["batch_stats"]})


def test_a_stack_is_the_rectified_norm_of_its_pieces_beside_each_other():
    """Values, updated statistics and all gradients; the first piece's moments are known, the others are not."""
    keys = jax.random.split(jax.random.key(2), 5)
    widths = (3, 2, 4)
    pieces = [1.5 * jax.random.normal(k, (2, 5, 3, c)) + 0.3 for k, c in zip(keys, widths, strict=False)]
    weight = jax.random.normal(keys[3], (2, 5, 3, sum(widths)))
    given = variables(sum(widths), bias=0.2, mean=0.4)
    given["params"]["scale"] = jax.random.normal(keys[4], (sum(widths),))

    def whole(params, pieces):
        x = jnp.concatenate(pieces, axis=-1)
        y, updated = BatchNorm().apply({**given, "params": params}, x, True, mutable=["batch_stats"])
        return jnp.sum(weight * jax.nn.relu(y)), updated

    def stacked(params, pieces):
        known = (batch_moments(pieces[0], shift=jnp.zeros(widths[0])), None, None)
        of = {**given, "params": params}
        (y, stack), updated = StackNorm().apply(of, Stack(tuple(pieces), known), True, mutable=["batch_stats"])
        assert [mean.shape for mean, _ in stack.moments] == [(c,) for c in widths]
        return jnp.sum(weight * y), updated

    (value, updated), gradients = jax.jit(jax.value_and_grad(stacked, argnums=(0, 1), has_aux=True))(
        given["params"], pieces
    )
    expected = jax.jit(jax.value_and_grad(whole, argnums=(0, 1), has_aux=True))(given["params"], pieces)
    chex.assert_trees_all_close(((value, updated), gradients), expected, rtol=2e-5, atol=2e-5)
    chex.assert_trees_all_close(stacked(given["params"], pieces), (value, updated), rtol=1e-5, atol=1e-5)


def test_moments_of_a_stack_that_are_known_are_not_made_again():
    pieces = (jnp.ones((2, 3, 3, 1)), 2 * jnp.ones((2, 3, 3, 1)))
    moments = (jnp.asarray([-1.0]), jnp.asarray([4.0])), (jnp.asarray([0.0]), jnp.asarray([16.0]))
    known = Stack(pieces, moments)
    layer = StackNorm(NormOptions(momentum=0.5, epsilon=0.0))
    (y, stack), updated = layer.apply(variables(2), known, True, mutable=["batch_stats"])
    np.testing.assert_allclose(y[0, 0, 0], [1.0, 0.5])  # (1 + 1) / 2, 2 / 4
    np.testing.assert_allclose(updated["batch_stats"]["mean"], [-0.5, 0.0])
    assert float(stack.moments[0][1][0]) == 4.0


@pytest.mark.parametrize("train, frozen", [(False, False), (True, True)])
def test_a_stack_with_running_statistics_makes_no_moments(train, frozen):
    pieces = Stack.of(jnp.full((1, 2, 2, 1), 3.0)).followed_by(jnp.full((1, 2, 2, 1), -3.0))
    layer = StackNorm(NormOptions(epsilon=0.0, frozen=frozen))
    y, stack = layer.apply(variables(2, mean=1.0, var=4.0), pieces, train)
    np.testing.assert_allclose(y[0, 0, 0], [1.0, 0.0])
    np.testing.assert_array_equal(stack.whole()[0, 0, 0], [3.0, -3.0])
    assert stack.moments == (None, None)
