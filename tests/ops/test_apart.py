"""The borders: identities in both directions that XLA's CPU does not fuse through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.ops.apart import apart, gradient_apart


def of(x, witness):
    return jnp.sum(jnp.sin(gradient_apart(2 * x, witness)))


def test_values_and_gradients_are_those_without():
    x, witness = jax.random.normal(jax.random.key(0), (3, 4)), jnp.asarray(0.7)
    for f in (of, jax.jit(of)):
        value, gradients = jax.value_and_grad(f, argnums=(0, 1))(x, witness)
        np.testing.assert_allclose(value, np.sum(np.sin(2 * np.asarray(x))), rtol=1e-6)
        np.testing.assert_allclose(gradients[0], 2 * np.cos(2 * np.asarray(x)), rtol=1e-6)
        assert float(gradients[1]) == 0.0
    batched = jax.vmap(jax.grad(of), (0, None))(x, witness)
    np.testing.assert_allclose(batched, 2 * np.cos(2 * np.asarray(x)), rtol=1e-6)
    assert jax.grad(of)(x.astype(jnp.bfloat16), witness).dtype == jnp.bfloat16


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


def value_of(x, witness):
    return jnp.sum(jnp.sin(apart(2 * x, witness)))


def test_the_border_of_both_directions():
    """Values and gradients as without; one loop forward and one more for the gradient; a NaN of the witness shows."""
    x, witness = jax.random.normal(jax.random.key(0), (3, 4)), jnp.asarray(0.7)
    for f in (value_of, jax.jit(value_of)):
        value, gradients = jax.value_and_grad(f, argnums=(0, 1))(x, witness)
        np.testing.assert_allclose(value, np.sum(np.sin(2 * np.asarray(x))), rtol=1e-6)
        np.testing.assert_allclose(gradients[0], 2 * np.cos(2 * np.asarray(x)), rtol=1e-6)
        assert float(gradients[1]) == 0.0
    batched = jax.vmap(jax.grad(value_of), (0, None))(x, witness)
    np.testing.assert_allclose(batched, 2 * np.cos(2 * np.asarray(x)), rtol=1e-6)
    assert apart(x.astype(jnp.bfloat16), witness).dtype == jnp.bfloat16
    assert jax.jit(value_of).lower(x, witness).compile().as_text().count(" while(") == 1
    assert jax.jit(jax.value_and_grad(value_of)).lower(x, witness).compile().as_text().count(" while(") == 2
    assert "stablehlo.while" not in jax.jit(value_of).trace(x, witness).lower(lowering_platforms=("tpu",)).as_text()
    assert not np.isfinite(np.asarray(jax.jit(apart)(x, jnp.asarray(np.nan)))).any()


def test_a_batch_over_two_devices_is_not_gathered():
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    x = jax.device_put(jnp.arange(8.0).reshape(4, 2), NamedSharding(mesh, PartitionSpec("data")))
    witness = jax.device_put(jnp.asarray(0.5), NamedSharding(mesh, PartitionSpec()))
    compiled = jax.jit(jax.grad(of)).lower(x, witness).compile()
    np.testing.assert_allclose(compiled(x, witness), 2 * np.cos(2 * np.asarray(x)), rtol=1e-6)
    assert not any(word in compiled.as_text() for word in ("all-gather", "all-to-all", "collective-permute"))
