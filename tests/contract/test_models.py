"""What every model keeps: DESIGN.md, contracts 2, 4, 6 and 11, on narrow networks. A new model is a line in MODELS."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.core.errors import JaxsegError
from jaxseg.core.names import known_names, resolve

NARROW = {"backbone": "mobilenet_v2", "backbone_options": {"width": 0.1}, "aspp_channels": 8}
MODELS = {
    "deeplab_v3": NARROW,
    "deeplab_v3plus": NARROW | {"decoder_channels": 8, "low_level_channels": 8},
}
CLASSES = 5
EVERY = pytest.mark.parametrize("name", MODELS)


def build(name, **options):
    return resolve("models", name)(num_classes=CLASSES, **(MODELS[name] | options))


@functools.cache
def variables(name):
    """Variables whose running statistics are not 0 and 1: a batch norm that ignores them shows."""
    model = build(name)
    v = jax.jit(lambda k: model.init(k, jnp.zeros((1, 32, 32, 3)), False))(jax.random.key(0))
    leaves, tree = jax.tree.flatten(v["batch_stats"])
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [leaf + 0.2 * jax.random.uniform(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
    return {"params": v["params"], "batch_stats": jax.tree.unflatten(tree, noise)}


def images(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@functools.cache
def forward(name, dtype=jnp.float32):
    model = build(name, dtype=dtype)
    return jax.jit(lambda v, x: model.apply(v, x, False))


def test_every_model_is_here():
    assert set(known_names("models")) == set(MODELS)


@EVERY
@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 2, 47, 3), (3, 33, 18, 3)])
def test_logits_at_the_inputs_size(name, shape):
    logits = forward(name)(variables(name), images(*shape))["logits"]
    assert logits.shape == (*shape[:-1], CLASSES) and logits.dtype == jnp.float32
    assert np.isfinite(logits).all() and np.ptp(logits) > 0


@EVERY
def test_eager_shapes_leading_dimensions_and_vmap_agree(name):
    v, x = variables(name), images(2, 33, 18, 3)
    model = build(name)
    expected = forward(name)(v, x)["logits"]
    # The batch's rows do not see each other, and leading dimensions are free.
    np.testing.assert_allclose(forward(name)(v, x[0])["logits"], expected[0], atol=1e-5)
    np.testing.assert_allclose(forward(name)(v, x[:, None])["logits"][:, 0], expected, atol=1e-5)
    mapped = jax.jit(jax.vmap(lambda x: model.apply(v, x, False)["logits"]))(x)
    np.testing.assert_allclose(mapped, expected, atol=1e-5)


@EVERY
def test_gradients_reach_every_parameter(name):
    v, x = variables(name), images(4, 33, 40, 3)
    model = build(name)

    def loss(params):
        outputs, updated = model.apply(
            {**v, "params": params}, x, True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
        )
        picture = jax.random.normal(jax.random.key(3), outputs["logits"].shape)
        return jnp.mean(outputs["logits"] * picture), updated

    gradients, updated = jax.jit(jax.grad(loss, has_aux=True))(v["params"])
    for path, g in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(g).all(), jax.tree_util.keystr(path)
        assert np.abs(g).max() > 0, jax.tree_util.keystr(path)
    old, new = jax.tree.leaves(v["batch_stats"]), jax.tree.leaves(updated["batch_stats"])
    assert all(not np.array_equal(a, b) for a, b in zip(old, new, strict=True))


@EVERY
def test_bfloat16_is_near_float32(name):
    v, x = variables(name), images(2, 33, 40, 3)
    exact = forward(name)(v, x)["logits"]
    rough = forward(name, jnp.bfloat16)(v, x)
    assert rough["logits"].dtype == jnp.float32 and rough["aspp"].dtype == jnp.bfloat16
    assert float(jnp.linalg.norm(rough["logits"] - exact) / jnp.linalg.norm(exact)) < 0.05


@EVERY
def test_output_stride_8_doubles_the_rates(name):
    """Atrous convolution's defining property: at every other pixel the dense map is the coarse one.

    Dropping a stride and doubling the rates after it gives, at every second position, what the stride gave.
    161 = 16 * 10 + 1 keeps the grids of both aligned.
    """
    model = {s: build(name, output_stride=s) for s in (8, 16)}
    rates = {s: m.aspp.rates for s, m in model.items()}
    assert rates == {16: (6, 12, 18), 8: (12, 24, 36)}
    v, x = variables(name), images(1, 161, 161, 3)
    taps = {s: jax.jit(lambda v, x, m=m: m.apply(v, x, False)["backbone/block16"])(v, x) for s, m in model.items()}
    assert taps[8].shape[1] == 2 * taps[16].shape[1] - 1
    np.testing.assert_allclose(taps[8][:, ::2, ::2], taps[16], atol=1e-4)


@EVERY
def test_four_devices_agree_with_one(name):
    v, x = variables(name), images(4, 33, 18, 3)
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = jax.device_put(v, NamedSharding(mesh, PartitionSpec()))
    model = build(name, dropout_rate=0.0)

    def f(v, x):
        outputs, updated = model.apply(v, x, True, mutable=["batch_stats"])
        return outputs["logits"], updated["batch_stats"]

    one = jax.jit(f)(v, x)
    compiled = jax.jit(f, out_shardings=(split, None)).lower(everywhere, jax.device_put(x, split)).compile()
    assert "all-gather" not in compiled.as_text()
    four = compiled(everywhere, jax.device_put(x, split))
    for a, b in zip(jax.tree.leaves(four), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.max(jnp.abs(b))))


@EVERY
def test_what_a_model_refuses(name):
    v = variables(name)
    for bad, message in ((jnp.zeros((1, 8, 8, 4)), "RGB"), (jnp.zeros((1, 8, 8, 3), jnp.uint8), "normalize")):
        with pytest.raises(JaxsegError, match=message):
            build(name).apply(v, bad, False)
    with pytest.raises(JaxsegError, match="at least 1"):
        build(name).apply(v, jnp.zeros((1, 0, 8, 3)), False)
    with pytest.raises(JaxsegError, match="output_stride"):
        build(name, output_stride=7)
