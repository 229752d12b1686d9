"""The borders: identities in both directions that XLA's CPU does not fuse through."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.ops.apart import apart, gradient_apart


def of(x, witness, border=gradient_apart):
    return jnp.sum(jnp.sin(border(2 * x, witness)))


@pytest.mark.parametrize("border", [apart, gradient_apart])
def test_values_and_gradients_are_those_without(border):
    x, witness = jax.random.normal(jax.random.key(0), (3, 4)), jnp.asarray(0.7)
    function = functools.partial(of, border=border)
    for f in (function, jax.jit(function)):
        value, gradients = jax.value_and_grad(f, argnums=(0, 1))(x, witness)
        np.testing.assert_allclose(value, np.sum(np.sin(2 * np.asarray(x))), rtol=1e-6)
        np.testing.assert_allclose(gradients[0], 2 * np.cos(2 * np.asarray(x)), rtol=1e-6)
        assert float(gradients[1]) == 0.0
    batched = jax.vmap(jax.grad(function), (0, None))(x, witness)
    np.testing.assert_allclose(batched, 2 * np.cos(2 * np.asarray(x)), rtol=1e-6)
    assert jax.grad(function)(x.astype(jnp.bfloat16), witness).dtype == jnp.bfloat16


@pytest.mark.parametrize("witness", [np.nan, np.inf, -np.inf])
def test_a_witness_that_is_not_finite_ends_and_shows(witness):
    gradient = jax.jit(jax.grad(of))(jnp.ones(5), jnp.asarray(witness))
    assert not np.isfinite(np.asarray(gradient)).any()


def test_a_cpu_gets_the_border_and_other_platforms_nothing():
    traced = jax.jit(jax.grad(of)).trace(jnp.ones(5), jnp.asarray(0.0))
    for platform, there in (("cpu", True), ("cuda", False), ("tpu", False)):
        assert ("stablehlo.while" in traced.lower(lowering_platforms=(platform,)).as_text()) == there


def test_the_compiled_program_keeps_the_border():
    """XLA neither counts the loop's turns nor drops it: the loop is in the optimised program for the CPU."""
    witness = jnp.asarray(0.5)
    compiled = jax.jit(jax.grad(of)).lower(jnp.ones((64, 8)), witness).compile()
    assert compiled.as_text().count(" while(") == 1


def test_the_border_of_values_stands_in_both_directions():
    """One loop forward and one more for the gradient, none for a TPU; a NaN of the witness shows."""
    x, witness = jax.random.normal(jax.random.key(0), (3, 4)), jnp.asarray(0.7)
    function = functools.partial(of, border=apart)
    assert jax.jit(function).lower(x, witness).compile().as_text().count(" while(") == 1
    assert jax.jit(jax.value_and_grad(function)).lower(x, witness).compile().as_text().count(" while(") == 2
    assert "stablehlo.while" not in jax.jit(function).trace(x, witness).lower(lowering_platforms=("tpu",)).as_text()
    assert not np.isfinite(np.asarray(jax.jit(apart)(x, jnp.asarray(np.nan)))).any()


def test_a_batch_over_two_devices_is_not_gathered():
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    x = jax.device_put(jnp.arange(8.0).reshape(4, 2), NamedSharding(mesh, PartitionSpec("data")))
    witness = jax.device_put(jnp.asarray(0.5), NamedSharding(mesh, PartitionSpec()))
    compiled = jax.jit(jax.grad(of)).lower(x, witness).compile()
    np.testing.assert_allclose(compiled(x, witness), 2 * np.cos(2 * np.asarray(x)), rtol=1e-6)
    assert not any(word in compiled.as_text() for word in ("all-gather", "all-to-all", "collective-permute"))
