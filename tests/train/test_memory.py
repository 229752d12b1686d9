"""What a train step keeps in memory: the loss by blocks of rows, donated buffers, no hidden copies, remat."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.defaults import defaults
from jaxseg.backbones import alexnet
from jaxseg.core.errors import JaxsegError
from jaxseg.core.mesh import put_batch
from jaxseg.layers.heads import enlarged
from jaxseg.losses import dice, lovasz_softmax, ohem_cross_entropy
from jaxseg.train.run import remat_option
from tests.contract import test_models as contract
from tests.train.test_step import ADDING, CLASSES, Tiny, batch_of, run, training

ONE = lambda step: jnp.ones(())  # noqa: E731
POOLED = ADDING | {
    "ohem_cross_entropy": (ONE, ohem_cross_entropy.build(min_kept=20, threshold=0.3)),
    "dice": (ONE, dice.build(per_image=False)),
}


class Coarse(nn.Module):
    """A strided convolution, a classifier, a resize; an auxiliary head with another alignment."""

    head: bool = False
    classes: int = CLASSES

    @nn.compact
    def __call__(self, image, *, train):
        x = nn.relu(nn.Conv(8, (3, 3), strides=(2, 2))(image))
        size = image.shape[-3:-1]
        outputs = enlarged("logits", nn.Conv(self.classes, (1, 1))(x), size, alignment="half_pixel")
        if self.head:
            outputs |= enlarged("aux/early", nn.Conv(self.classes, (1, 1))(x), size, alignment="align_corners")
        return outputs


def same_run(expected, found):
    """Losses and parameters after three steps."""
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6), expected[0].params, found[0].params
    )


@pytest.mark.parametrize(
    ("terms", "devices", "parts", "head"), [(ADDING, 1, 1, True), (POOLED, 2, 1, False), (POOLED, 2, 2, True)]
)
def test_blocks_do_not_change_the_update(terms, devices, parts, head):
    batch, options = batch_of(4), {"terms": terms, "aux": 0.5 if head else 0.0}
    batch["label"][1] = 255
    plain = run(Coarse(head=head), batch, **options)
    same_run(plain, run(Coarse(head=head), batch, devices, block_rows=4, accumulation_steps=parts, **options))


def test_a_network_without_coarse_logits_gives_them_as_they_are():
    batch = batch_of(4)
    same_run(run(Tiny(norm=False), batch), run(Tiny(norm=False), batch, block_rows=4))


def test_the_step_holds_no_logits_at_full_size():
    def text(**options):
        mesh, state, step = training(Coarse(head=True, classes=7), 2, aux=0.5, **options)
        return step.lower(state, put_batch(mesh, batch_of(4))).compile().as_text()

    full = "f32[2,6,5,7]"  # two of the four images on each device
    assert full in text()
    blocks = text(block_rows=2)
    assert full not in blocks and "f32[2,2,5,7]" in blocks
    assert "all-gather" not in blocks and "all-reduce" in blocks


def test_an_image_with_logits_that_are_not_finite_is_named():
    class Broken(nn.Module):
        @nn.compact
        def __call__(self, image, *, train):
            logits = nn.Conv(CLASSES, (1, 1))(image)[:, ::2, ::2]
            return enlarged("logits", logits.at[2, 0, 0, 0].set(jnp.inf), (6, 5), alignment="half_pixel")

    mesh, state, step = training(Broken(), block_rows=4)
    _, metrics = step(state, put_batch(mesh, batch_of(4)))
    assert np.asarray(metrics["row_finite"]).tolist() == [True, True, False, True]


def test_what_blocks_are_refused_for():
    with pytest.raises(JaxsegError, match="config.loss.lovasz needs all logits"):
        training(Coarse(), terms=ADDING | {"lovasz": (ONE, lovasz_softmax.build())}, block_rows=4)
    for wrong in (-1, 2.5, True):
        with pytest.raises(JaxsegError, match="loss_block_rows"):
            training(Coarse(), block_rows=wrong)
    training(Coarse(), terms={"lovasz": (ONE, lovasz_softmax.build())})  # not without blocks


@pytest.mark.parametrize("parts", [1, 2])
def test_the_new_state_takes_the_memory_of_the_old(parts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # JAX warns of donated buffers that cannot be used
        mesh, state, step = training(Tiny(), ema_decay=0.9, accumulation_steps=parts)
        batch = put_batch(mesh, batch_of(4))
        compiled = step.lower(state, batch).compile()
    leaves = jax.tree.leaves(state)
    assert compiled.memory_analysis().alias_size_in_bytes == sum(leaf.nbytes for leaf in leaves)
    assert {"ema", "opt_state", "params", "model_state"} <= {
        jax.tree_util.keystr(path[:1]).strip(".") for path, _ in jax.tree_util.tree_leaves_with_path(state)
    }
    step(state, batch)
    assert all(leaf.is_deleted() for leaf in leaves) and not batch["image"].is_deleted()


@pytest.mark.parametrize("block_rows", [0, 4])
def test_nothing_is_copied_between_host_and_device_in_a_step(block_rows):
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="[Dd]isallowed"):
        jnp.zeros(2) + np.ones(2, np.float32)  # the guard sees a copy where there is one
    mesh, state, step = training(
        Coarse(), 2, terms=POOLED, block_rows=block_rows, ema_decay=0.9, accumulation_steps=2, clip=1.0
    )
    batch = batch_of(4)
    with jax.transfer_guard("disallow"):
        for _ in range(2):
            state, metrics = step(state, put_batch(mesh, batch))
    assert np.isfinite(metrics["loss"])


def test_remat_is_passed_to_the_network_in_one_place():
    config = ConfigDict({"train": {"remat": True}, "model": {"name": "unet"}})
    assert remat_option(config) == {"remat": True}
    assert remat_option(ConfigDict({"train": defaults().train, "model": {}})) == {}
    config.model.remat = False
    with pytest.raises(JaxsegError, match="config.model.remat = False"):
        remat_option(config)
    with pytest.raises(JaxsegError, match="config.train.remat = 'stage'"):
        remat_option(ConfigDict({"train": {"remat": "stage"}, "model": {}}))


def checkpoints(function, *arguments):
    """How many rematerialised parts the traced function has."""
    return str(jax.make_jaxpr(function)(*arguments)).count("remat")


@contract.EVERY
@pytest.mark.slow
def test_remat_of_every_network_keeps_names_and_gradients(name):
    variables = contract.variables(name)
    x = contract.images(2, contract.side(name, 33), contract.side(name, 34), 3)
    plain, again = contract.build(name), contract.build(name, remat=True)
    picture = jax.random.normal(jax.random.key(1), (*x.shape[:-1], contract.CLASSES))

    def gradient(model):
        def loss(params):
            # Running statistics: those of a few values of these small maps would amplify the roundings.
            return jnp.mean(model.apply({**variables, "params": params}, x, False)["logits"] * picture)

        return jax.grad(loss)

    assert checkpoints(gradient(again), variables["params"]) > checkpoints(gradient(plain), variables["params"])
    a, b = (jax.jit(gradient(model))(variables["params"]) for model in (plain, again))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4 * float(jnp.max(jnp.abs(a)))), a, b)


def test_remat_of_alexnet():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 67, 67, 3)), jnp.float32)
    plain, again = (alexnet.build(width=6, remat=remat) for remat in (False, True))
    variables = jax.jit(lambda k: plain.init(k, x, True))(jax.random.key(0))
    gradients = [
        jax.grad(lambda v, model=model: jnp.sum(jnp.square(model.apply(v, x, True)["s16"]))) for model in (plain, again)
    ]
    assert [checkpoints(gradient, variables) > 0 for gradient in gradients] == [False, True]
    a, b = (jax.jit(gradient)(variables) for gradient in gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.max(jnp.abs(a)))), a, b)
