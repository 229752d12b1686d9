"""A dense block in training against the same as JAX derives it, all maps put beside each other by each layer."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.backbones.densenet import BottleneckLayer
from jaxseg.layers.dense_block import DenseBlock
from jaxseg.layers.norm import NormOptions
from jaxseg.layers.stack import Room, Stack
from jaxseg.models.tiramisu import NormConv

OPTIONS = NormOptions(momentum=0.75, epsilon=1e-3)
GROWTH = 3


def block(layer=NormConv, *, layers=3, remat=False, norm=OPTIONS, **options):
    if layer is NormConv:
        options = {"dropout_rate": 0.0} | options
    return DenseBlock(functools.partial(layer, GROWTH, norm=norm, **options), layers, GROWTH, remat)


def made(module, size=(2, 5, 7), widths=(4,), dtype=jnp.float32):
    keys = iter(jax.random.split(jax.random.key(3), 300))
    pieces = tuple((0.4 + jax.random.normal(next(keys), (*size, c))).astype(dtype) for c in widths)
    variables = module.init({"params": next(keys), "dropout": next(keys)}, Stack.of(*pieces), True)
    noisy = jax.tree.map(lambda x: x + 0.3 * jax.random.uniform(next(keys), x.shape), variables)
    return noisy, pieces


def plain_norm(of, x):
    axes = tuple(range(x.ndim - 1))
    mean, var = jnp.mean(x, axes), jnp.var(x, axes)
    return jax.nn.relu((x - mean) / jnp.sqrt(var + OPTIONS.epsilon) * of["scale"] + of["bias"]), (mean, var)


def plain_conv(of, x):
    y = lax.conv_general_dilated(x, of["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y + of.get("bias", 0.0)


def plain(layer, params, pieces):
    """All maps, and each first norm's moments."""
    x, moments = jnp.concatenate(pieces, axis=-1), []
    for i in range(len(params)):
        of = params[f"layer{i + 1}"]
        y, found = plain_norm(of["norm" if layer is NormConv else "norm1"], x)
        if layer is NormConv:
            y = plain_conv(of["conv"], y)
        else:
            y = plain_conv(of["conv2"], plain_norm(of["norm2"], plain_conv(of["conv1"], y))[0])
        x = jnp.concatenate([x, y], axis=-1)
        moments.append(found)
    return x, moments


def weights(x):
    return jax.random.normal(jax.random.key(9), x.shape, jnp.float32)


def ours(module, variables, params, pieces, **options):
    """A loss of the maps and of their moments, which a later norm reads."""
    given = {**variables, "params": params}
    stack, updated = module.apply(given, Stack.of(*pieces), True, mutable=["batch_stats", "batch_moments"], **options)
    (x,), (moments,) = stack
    more = 0.0 if moments is None else jnp.sum(weights(moments[0]) * (jnp.sin(moments[0]) + moments[1] ** 2))
    return jnp.sum(weights(x) * x.astype(jnp.float32)) + more, (x, updated)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("layer", [NormConv, BottleneckLayer])
@pytest.mark.parametrize("widths", [(4,), (2, 3)])
def test_values_moments_and_gradients(layer, widths, remat):
    module = block(layer, remat=remat)
    variables, pieces = made(module, widths=widths)
    found = functools.partial(ours, module, variables)

    def reference(params, pieces):
        x, moments = plain(layer, params, pieces)
        mean, var = moments[-1]
        return jnp.sum(weights(x) * x) + jnp.sum(weights(mean) * (jnp.sin(mean) + var**2)), (x, moments)

    (value, (x, updated)), gradients = jax.jit(jax.value_and_grad(found, argnums=(0, 1), has_aux=True))(
        variables["params"], pieces
    )
    (expected, (maps, moments)), wanted = jax.value_and_grad(reference, argnums=(0, 1), has_aux=True)(
        variables["params"], pieces
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(x, maps, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(gradients, wanted, rtol=2e-4, atol=5e-4)
    name = "norm" if layer is NormConv else "norm1"
    for i, (mean, var) in enumerate(moments):
        kept = updated["batch_moments"][f"layer{i + 1}"][name]
        chex.assert_trees_all_close((kept["mean"], kept["var"]), (mean, var), rtol=1e-5, atol=1e-6)
        assert float(kept["count"]) == 70
        running = variables["batch_stats"][f"layer{i + 1}"][name]
        expected = 0.75 * running["var"] + 0.25 * var * 70 / 69
        np.testing.assert_allclose(updated["batch_stats"][f"layer{i + 1}"][name]["var"], expected, rtol=1e-5)
    if layer is BottleneckLayer:  # what is inside a layer is updated too
        moved = updated["batch_stats"]["layer3"]["norm2"]["mean"] - variables["batch_stats"]["layer3"]["norm2"]["mean"]
        assert np.abs(moved).min() > 1e-5
    chex.assert_trees_all_close(found(variables["params"], pieces), (value, (x, updated)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("layer", [NormConv, BottleneckLayer])
def test_second_derivatives(layer, remat):
    """The gradient of a penalty on the gradients, which goes through the borders once more."""
    module = block(layer, layers=2, remat=remat)
    variables, pieces = made(module)

    def loss(params, pieces):
        stack, _ = module.apply({**variables, "params": params}, Stack.of(*pieces), True, mutable=["batch_stats"])
        return jnp.mean(jnp.sin(stack.pieces[0]))

    def reference(params, pieces):
        return jnp.mean(jnp.sin(plain(layer, params, pieces)[0]))

    def of_penalty(of):
        def penalty(*arguments):
            return sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(of, (0, 1))(*arguments)))

        return jax.jit(jax.grad(penalty, (0, 1)))(variables["params"], pieces)

    found, expected = of_penalty(loss), of_penalty(reference)
    largest = max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(expected))
    assert largest > 0.01
    chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-4 * largest)


@pytest.mark.parametrize("known", [None, 3, 4])
def test_moments_that_are_known_are_taken_and_have_a_gradient(known):
    module = block(layers=2)
    variables, (x,) = made(module)
    mean, var = jnp.asarray([0.1, -0.2, 0.3, 0.4]), jnp.asarray([1.0, 2.0, 0.5, 1.5])

    def loss(mean, var):
        given = None if known is None else (mean[:known], var[:known])
        stack, _ = module.apply(variables, Stack((x,), (given,)), True, mutable=["batch_stats"])
        return jnp.sum(weights(stack.pieces[0]) * stack.pieces[0])

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(mean, var)
    for of in gradients:
        np.testing.assert_array_equal(np.asarray(of) != 0, np.arange(4) < (known or 0))
    if known:
        step = 1e-2
        for i in range(known):
            at = step * jnp.eye(4)[i]
            by_mean, by_var = (
                (loss(mean + at, var) - loss(mean - at, var)),
                (loss(mean, var + at) - loss(mean, var - at)),
            )
            np.testing.assert_allclose(gradients[0][i], by_mean / (2 * step), rtol=0.05, atol=0.3)
            np.testing.assert_allclose(gradients[1][i], by_var / (2 * step), rtol=0.05, atol=0.3)


def test_frozen_norms_and_the_room_at_test():
    """Frozen, training is what test is, which lies in a room; no statistics move and no moments come."""
    module = block(BottleneckLayer, norm=NormOptions(frozen=True))
    variables, (x,) = made(module)
    (_, (trained, updated)), gradients = jax.value_and_grad(
        lambda x: ours(module, variables, variables["params"], (x,)), has_aux=True
    )(x)
    chex.assert_trees_all_equal(dict(updated)["batch_stats"], variables["batch_stats"])

    def tested(x):
        return module.apply(variables, Room.around(x, before=1, after=3 * GROWTH), False).whole()

    np.testing.assert_allclose(trained, tested(x), rtol=1e-5, atol=1e-5)
    expected = jax.grad(lambda x: jnp.sum(weights(trained) * tested(x)))(x)
    np.testing.assert_allclose(gradients, expected, rtol=1e-4, atol=1e-4)


def test_dropout_is_drawn_once_a_layer_and_again_the_same_with_remat():
    kept, again = (block(remat=remat, dropout_rate=0.5) for remat in (False, True))
    variables, pieces = made(kept)
    key = {"dropout": jax.random.key(5)}

    def run(module, key):
        f = jax.value_and_grad(functools.partial(ours, module, variables, rngs=key), argnums=(0, 1), has_aux=True)
        return jax.jit(f)(variables["params"], pieces)

    chex.assert_trees_all_close(run(kept, key), run(again, key), rtol=2e-4, atol=2e-4)
    x = np.asarray(run(kept, key)[0][1][0])
    dropped = [x[..., c : c + GROWTH] == 0 for c in (4, 7, 10)]
    assert all(0.4 < share.mean() < 0.6 for share in dropped)
    assert (dropped[0] != dropped[1]).any() and (dropped[1] != dropped[2]).any()
    assert (np.asarray(run(kept, {"dropout": jax.random.key(6)})[0][1][0]) != x).any()


@pytest.mark.parametrize("remat", [False, True])
def test_within_a_remat_of_more(remat):
    module = block(remat=remat)
    variables, pieces = made(module)
    f = functools.partial(ours, module, variables)
    found, inside = (
        jax.jit(jax.grad(of, argnums=(0, 1), has_aux=True))(variables["params"], pieces)
        for of in (f, jax.checkpoint(f))
    )
    chex.assert_trees_all_close(inside, found, rtol=2e-4, atol=2e-4)


def test_16_bit_maps():
    module, exact = block(dtype=jnp.bfloat16), block()
    variables, pieces = made(exact)
    narrow = tuple(piece.astype(jnp.bfloat16) for piece in pieces)
    f, g = (
        jax.jit(jax.grad(functools.partial(ours, of, variables), argnums=(0, 1), has_aux=True))
        for of in (module, exact)
    )
    (of_params, of_pieces), (x, _) = f(variables["params"], narrow)
    wanted, (maps, _) = g(variables["params"], pieces)
    assert x.dtype == of_pieces[0].dtype == jnp.bfloat16 and of_params["layer1"]["norm"]["scale"].dtype == jnp.float32
    for got, expected in zip(jax.tree.leaves((of_params, of_pieces, x)), jax.tree.leaves((*wanted, maps)), strict=True):
        got, expected = np.asarray(got, np.float32), np.asarray(expected)
        assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()


def test_each_layer_reads_one_array_and_writes_its_maps_into_it():
    """No concatenation of maps; with remat no more of a layer is kept than its maps."""
    sizes = {}
    for remat in (False, True):
        module = block(layers=6, remat=remat)
        variables, pieces = made(module, size=(2, 32, 32), widths=(8,))
        f = jax.jit(jax.grad(functools.partial(ours, module, variables), has_aux=True))
        lowered = f.lower(variables["params"], pieces)
        text = lowered.as_text()
        assert not [line for line in text.splitlines() if "concatenate" in line and "x32x32x8x" in line]
        assert text.count("stablehlo.dynamic_update_slice") >= 6
        # Without it other platforms find that what is made again is what there was, and keep that.
        assert ("stablehlo.optimization_barrier" in text) == remat
        sizes[remat] = lowered.compile().memory_analysis().temp_size_in_bytes
    assert sizes[True] < 0.8 * sizes[False]


def test_a_rectified_map_is_written_once():
    """A product reads it as pixels, the kernel gradient as images: XLA's CPU made it for each of the two."""
    module = block(layers=1, dropout_rate=0.0)
    variables, pieces = made(module, size=(2, 16, 18), widths=(36,))  # thin enough for shifts

    def loss(params):
        return jnp.sum(jnp.sin(ours(module, variables, params, pieces)[0]))

    text = jax.jit(jax.grad(loss)).lower(variables["params"]).compile().as_text()
    wholes = [
        line for line in text.splitlines() if " maximum(" in line and ("2,16,18,36]" in line or "576,36]" in line)
    ]
    assert len(wholes) == 1, wholes


def test_a_layer_adds_the_same_whatever_came_before():
    """Equations of the step by layers are a straight line: as pieces they were a square."""

    def equations(layers):
        module = block(layers=layers)
        pieces = (jax.ShapeDtypeStruct((1, 8, 8, 8), jnp.float32),)
        variables = jax.eval_shape(lambda key, x: module.init(key, Stack.of(*x), True), jax.random.key(0), pieces)
        f = jax.value_and_grad(lambda params, v, x: ours(module, v, params, x), has_aux=True)
        return str(jax.make_jaxpr(f)(variables["params"], variables, pieces)).count(" = ")

    few, more, most = equations(3), equations(5), equations(7)
    assert most - more == more - few > 0


def test_a_batch_over_two_devices_is_the_whole_batch():
    module = block(BottleneckLayer)
    variables, pieces = made(module, size=(4, 5, 7), widths=(2, 3))
    f = jax.jit(jax.value_and_grad(functools.partial(ours, module, variables), argnums=(0, 1), has_aux=True))
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    params = jax.device_put(variables["params"], NamedSharding(mesh, PartitionSpec()))
    placed = jax.device_put(pieces, NamedSharding(mesh, PartitionSpec("data")))
    chex.assert_trees_all_close(f(params, placed), f(variables["params"], pieces), rtol=2e-4, atol=2e-4)
    assert "all-gather" not in f.lower(params, placed).compile().as_text()
