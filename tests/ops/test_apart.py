"""The borders: identities in both directions that XLA's CPU does not fuse through."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.ops.apart import apart, gradient_apart
from jaxseg.ops.conv import conv


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


@pytest.mark.parametrize("border", [apart, gradient_apart])
def test_a_border_has_derivatives_of_any_order(border):
    function = functools.partial(of, border=border)
    for derivative in (2 * np.cos(1.4), -4 * np.sin(1.4), -8 * np.cos(1.4), 16 * np.sin(1.4)):
        function = jax.grad(function)
        np.testing.assert_allclose(jax.jit(function)(jnp.asarray(0.7), jnp.asarray(0.5)), derivative, rtol=1e-6)


def test_a_batch_over_two_devices_is_not_gathered():
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    x = jax.device_put(jnp.arange(8.0).reshape(4, 2), NamedSharding(mesh, PartitionSpec("data")))
    witness = jax.device_put(jnp.asarray(0.5), NamedSharding(mesh, PartitionSpec()))
    compiled = jax.jit(jax.grad(of)).lower(x, witness).compile()
    np.testing.assert_allclose(compiled(x, witness), 2 * np.cos(2 * np.asarray(x)), rtol=1e-6)
    assert not any(word in compiled.as_text() for word in ("all-gather", "all-to-all", "collective-permute"))


@pytest.mark.parametrize(("side", "c", "n"), [(48, 8, 16), (8, 16, 8)])
def test_the_gradient_of_a_product_is_made_once_for_its_two_readers(side, c, n):
    """Image's and kernel's gradient read it in two shapes, or one transposed, and each had it made: here a cosine."""
    x, kernel = jnp.ones((2, side, side, c)), jnp.ones((1, 1, c, n))

    def loss(x, kernel):
        return jnp.sum(jnp.sin(conv(x, kernel)))

    text = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).compile().as_text()
    assert text.count(" cosine(") == 1


CONVOLUTIONS = {
    "winograd": ((4, 64, 64, 64), 64, 3, 1),
    "shifts": ((2, 32, 32, 64), 8, 3, 1),
    "product": ((2, 32, 32, 64), 32, 1, 1),
    "rows": ((1, 64, 64, 16), 16, 3, 1),
    "taps": ((1, 32, 32, 64), 64, 3, 24),
    "beside": ((4, 128, 128, 32), 32, 3, 1),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_second_derivatives_go_through_the_borders_of_convolutions(case):
    """The gradient of a penalty on both gradients, against XLA's own convolution."""
    shape, n, k, rate = CONVOLUTIONS[case]
    a, b = jax.random.split(jax.random.key(0))
    x, kernel = jax.random.normal(a, shape), 0.1 * jax.random.normal(b, (k, k, shape[-1], n))
    numbers = ("NHWC", "HWIO", "NHWC")

    def stock(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", rhs_dilation=(rate, rate), dimension_numbers=numbers, precision="highest"
        )

    def of_penalty(convolve):
        def gradients(x, kernel):
            return jax.grad(lambda x, kernel: jnp.sum(jnp.sin(convolve(x, kernel))), (0, 1))(x, kernel)

        return jax.jit(jax.grad(lambda *a: sum(jnp.sum(g**2) for g in gradients(*a)), (0, 1)))(x, kernel)

    for got, expected in zip(of_penalty(functools.partial(conv, dilation=rate)), of_penalty(stock), strict=True):
        np.testing.assert_allclose(got, expected, atol=5e-5 * float(jnp.max(jnp.abs(expected))))
