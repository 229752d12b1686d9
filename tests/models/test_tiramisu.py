"""FC-DenseNet at test, where a dense block lies in one array: the same as piece by piece."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models.tiramisu import build

SMALL = {"num_classes": 5, "layers": (2, 3, 2), "growth_rate": 4, "first_channels": 6, "dropout_rate": 0.0}


def made(size, **options):
    """The network with frozen norms, whose training is what it does at test, in pieces; variables; an image."""
    network = build(**SMALL, freeze_norm=True, **options)
    image = jax.random.normal(jax.random.key(0), (2, *size, 3))
    variables = network.init(jax.random.key(1), image)
    keys = iter(jax.random.split(jax.random.key(2), 200))
    stats = jax.tree.map(lambda x: x + jax.random.uniform(next(keys), x.shape), variables["batch_stats"])
    return network, {**variables, "batch_stats": stats}, image


@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_a_block_in_one_array_is_the_one_in_pieces(size):
    network, variables, image = made(size)
    apply = jax.jit(network.apply, static_argnums=2)
    tested, trained = apply(variables, image, False), apply(variables, image, True)
    assert sorted(tested) == sorted(trained) == ["bottleneck", "down1", "logits", "up1"]
    chex.assert_trees_all_close(tested, trained, rtol=1e-5, atol=1e-5)
    eager = network.apply(variables, image, False)
    chex.assert_trees_all_close(eager, tested, rtol=1e-5, atol=1e-5)
    assert np.abs(tested["logits"]).max() > 1e-2


@pytest.mark.parametrize("remat", [False, True])
def test_its_gradients_are_those_of_the_pieces(remat):
    network, variables, image = made((9, 7), remat=remat)

    def gradients(train):
        def loss(params, image):
            return jnp.sum(network.apply({**variables, "params": params}, image, train)["logits"] ** 2)

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(variables["params"], image)

    chex.assert_trees_all_close(gradients(False), gradients(True), rtol=1e-4, atol=1e-4)


def test_the_batchs_own_statistics_at_test_are_made_of_pieces():
    network, variables, image = made((8, 8))
    own = build(**SMALL, batch_norm_at_test="batch")
    tested = own.apply(variables, image, False)["logits"]
    trained, _ = own.apply(variables, image, True, mutable=["batch_stats"])
    np.testing.assert_allclose(tested, trained["logits"], rtol=1e-5, atol=1e-5)
    assert np.abs(tested - network.apply(variables, image, False)["logits"]).max() > 1e-3
