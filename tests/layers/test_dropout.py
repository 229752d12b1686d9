"""Dropout: its probability, that decisions do not depend on each other, and that only key and shape decide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.core.errors import JaxsegError
from jaxseg.core.rng import base_key, step_keys
from jaxseg.layers.dropout import Dropout


def dropped(x, rate, seed=0, **options):
    return Dropout(rate, **options).apply({}, x, rngs=step_keys(base_key(seed), 3, ("dropout",)))


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9, 0.001])
def test_share_of_zeros_and_the_value_of_the_others(rate):
    """400,000 decisions: five standard deviations of a binomial; each channel alike."""
    x = jnp.full((40, 50, 40, 5), 3.0)
    y = np.asarray(dropped(x, rate))
    for part in (y, *np.moveaxis(y, -1, 0)):
        deviation = np.sqrt(rate * (1 - rate) / part.size)
        assert abs(np.mean(part == 0) - rate) < 5 * deviation
    np.testing.assert_allclose(y[y != 0], 3 / (1 - rate), rtol=1e-6)


def test_decisions_do_not_depend_on_each_other():
    """Channels, neighbours, images and other keys agree as often as independent decisions do: half of them."""
    x = jnp.ones((300, 300, 4))
    y = np.asarray(dropped(x, 0.5)) > 0
    other = np.asarray(dropped(x, 0.5, seed=1)) > 0
    pairs = [(y[..., :2], y[..., 2:]), (y[..., 0], y[..., 1]), (y[1:], y[:-1]), (y[:, 1:], y[:, :-1]), (y, other)]
    for a, b in pairs:
        assert abs(np.mean(a == b) - 0.5) < 5 * 0.5 / np.sqrt(a.size)


def test_the_gradient_takes_the_same_decisions():
    x = jax.random.normal(jax.random.key(3), (4, 5, 6, 7))
    y, factor = jax.jit(lambda x: (dropped(x, 0.3), jax.grad(lambda x: jnp.sum(dropped(x, 0.3)))(x)))(x)
    factor = np.asarray(factor)
    np.testing.assert_allclose(y, factor * np.asarray(x), rtol=1e-6)
    assert set(np.unique(factor)) == {0.0, np.float32(2**32 / round(0.7 * 2**32))}


def test_axes_of_one_decision():
    y = np.asarray(dropped(jnp.ones((8, 5, 6, 7)), 0.5, broadcast_dims=(1, 2))) > 0
    assert (y == y[:, :1, :1]).all() and 0 < y.mean() < 1


def test_nothing_is_dropped_at_rate_0_and_in_evaluation():
    x = jax.random.normal(jax.random.key(3), (4, 5))
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x), x)
    np.testing.assert_array_equal(Dropout(0.7, deterministic=True).apply({}, x), x)


def test_rates_next_to_0_and_1_and_keys_of_jax_itself():
    x = jnp.ones((100, 100))
    assert not np.any(np.asarray(dropped(x, 1e-12)) == 0)
    assert np.all(np.asarray(dropped(x, 1 - 1e-12)) == 0)
    threefry = np.asarray(Dropout(0.3).apply({}, x, rngs={"dropout": jax.random.key(0)}))
    assert abs(np.mean(threefry == 0) - 0.3) < 5 * np.sqrt(0.21 / x.size)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_a_rate_that_is_none(rate):
    with pytest.raises(JaxsegError, match=r"must lie in \[0, 1\)"):
        Dropout(rate).apply({}, jnp.ones((2, 2)))


def test_eager_jit_vmap_and_two_devices_agree_and_bfloat16_stays():
    x = jax.random.normal(jax.random.key(3), (4, 6, 5, 3))
    eager = dropped(x, 0.4)
    np.testing.assert_array_equal(jax.jit(lambda x: dropped(x, 0.4))(x), eager)
    same_key = jax.vmap(lambda x: dropped(x, 0.4))(x[:, None])
    np.testing.assert_array_equal(same_key[0], dropped(x[:1], 0.4))
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    compiled = jax.jit(lambda x: dropped(x, 0.4)).lower(split).compile()
    np.testing.assert_array_equal(compiled(split), eager)
    assert not any(word in compiled.as_text() for word in ("all-gather", "all-to-all", "collective-permute"))
    assert dropped(x.astype(jnp.bfloat16), 0.4).dtype == jnp.bfloat16
