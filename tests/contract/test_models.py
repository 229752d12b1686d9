"""What every model keeps: DESIGN.md, contracts 2, 4, 6 and 11, on narrow networks. A new model is a line in MODELS."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.core.errors import JaxsegError
from jaxseg.core.names import known_names, resolve
from jaxseg.ops.row_blocks import RowBlocks, map_rows

MOBILE = {"backbone": "mobilenet_v2", "backbone_options": {"width": 0.1}}
RESNET = {"backbone": "resnet18", "backbone_options": {"width": 4}}
ALEXNET = {"backbone": "alexnet", "variant": "32s"}
ASPP = MOBILE | {"aspp_channels": 8}
# Name in a test -> name of the model and its narrow options.
MODELS: dict[str, tuple[str, dict]] = {
    "deeplab_v1": (
        "deeplab_v1",
        {"backbone_options": {"width": 4}, "fc_channels": 8, "multi_scale": True, "scale_channels": 4},
    ),
    "deeplab_v2": ("deeplab_v2", RESNET | {"scales": (1.0, 0.5)}),
    "dilation": ("dilation", {"backbone_options": {"width": 4}, "fc_channels": 8}),
    "deeplab_v3": ("deeplab_v3", ASPP),
    "deeplab_v3plus": ("deeplab_v3plus", ASPP | {"decoder_channels": 8, "low_level_channels": 8}),
    "fcn": ("fcn", {"backbone_options": {"width": 8}, "fc_channels": 32, "deconvolution": "depthwise"}),
    "fcn alexnet": (
        "fcn",
        ALEXNET | {"backbone_options": {"width": 12}, "fc_channels": 32, "deconvolution": "dense"},
    ),
    "fcn_resnet": ("fcn_resnet", RESNET | {"aux_tap": "stage3"}),
    "gcn": ("gcn", RESNET | {"kernel_size": 3}),
    "pspnet": (
        "pspnet",
        RESNET | {"pyramid_channels": 4, "fusion_channels": 8, "aux_tap": "stage3"},
    ),
    "refinenet": ("refinenet", RESNET | {"features": (8, 8, 8, 16), "output_units": (1, 1, 1, 1), "crp_blocks": 2}),
    "ksac": ("ksac", MOBILE | {"channels": 8, "decoder_channels": 8, "low_level_channels": 8}),
    "lraspp": (
        "lraspp",
        {"backbone": "mobilenet_v3_small", "backbone_options": {"width": 0.1}, "channels": 8, "low_level": "c2"},
    ),
    "residual_fcn": ("residual_fcn", {"width": 4, "simple_blocks": 1, "depths": (2, 1)}),
    "scnet_recon": ("scnet_recon", {"encoder": ((4,), (8,), (8,)), "decoder": ((8,), (4,), (4,))}),
    "segnet": ("segnet", {"encoder": ((4, 4), (8, 8), (8,)), "decoder": ((8, 8), (8, 4), (4,))}),
    "segnet_basic": ("segnet_basic", {"width": 8}),
    "unet": ("unet", {"width": 4, "depth": 2}),
    "unet same": ("unet", {"width": 4, "depth": 3, "padding": "same", "batch_norm": True}),
    "unet_encoder": ("unet_encoder", RESNET | {"decoder_channels": (8, 8, 8, 8, 8)}),
    "tiramisu": ("tiramisu", {"layers": (1, 1, 1, 1, 1), "growth_rate": 4, "first_channels": 4}),
    "upernet": ("upernet", RESNET | {"pyramid_channels": 4, "fpn_channels": 8}),
}
# Smallest image a side, where it is not 1.
SMALLEST: dict[str, int] = {"tiramisu": 4}
# Parts of a parameter's path that have no gradient on purpose.
FROZEN: dict[str, str] = {}
# Relative difference of the logits at bfloat16 where it is above 0.05: maxima that are nearly equal change their place,
# which unpooling by indices shows (0.004 with bed of nails); MobileNetV2 at width 0.1 has drawn weights in 17 blocks.
ROUGH: dict[str, float] = {"scnet_recon": 0.15, "segnet": 0.15, "segnet_basic": 0.3, "deeplab_v3": 0.1}
# What a network is built with to learn four images of 33 pixels by heart. At stride 16 they are 3 x 3 values. Enlarged
# probabilities of the dilated front end cannot draw tiles of 11 pixels from samples every 8: scores that are free
# parameters get 87 % of the pixels right, bilinear scores 99 %.
HEART: dict[str, dict] = {"deeplab_v3": {"output_stride": 8}, "dilation": {"upsampling": "deconvolution"}}
CLASSES = 5
EVERY = pytest.mark.parametrize("name", MODELS)
DEEPLABS = pytest.mark.parametrize("name", ["deeplab_v3", "deeplab_v3plus"])


def build(name, **options):
    model, narrow = MODELS[name]
    return resolve("models", model)(num_classes=CLASSES, **(narrow | options))


def side(name, pixels):
    """`pixels`, or what the model takes at least."""
    return max(pixels, SMALLEST.get(name, 1))


@functools.cache
def variables(name):
    """Variables without zeros and ones: a bias, a norm or a head that is ignored shows. `init` would compile long."""
    model, pixels = build(name), side(name, 32)
    shapes = jax.eval_shape(lambda k: model.init(k, jnp.zeros((1, pixels, pixels, 3)), False), jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)
        return rng.uniform(0, 0.1, leaf.shape).astype(np.float32) + np.float32(path[-1].key in ("scale", "var"))

    return {"batch_stats": {}} | jax.tree_util.tree_map_with_path(draw, shapes)


def images(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@functools.cache
def forward(name, dtype=jnp.float32):
    model = build(name, dtype=dtype)
    return jax.jit(lambda v, x: model.apply(v, x, False))


def relative(a, b):
    return float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))


def test_every_model_is_here():
    assert set(known_names("models")) == {model for model, _ in MODELS.values()}


@EVERY
@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (3, 33, 18, 3)])
def test_logits_at_the_inputs_size(name, shape):
    shape = (shape[0], side(name, shape[1]), side(name, shape[2]), 3)
    logits = forward(name)(variables(name), images(*shape))["logits"]
    assert logits.shape == (*shape[:-1], CLASSES) and logits.dtype == jnp.float32
    assert np.isfinite(logits).all() and np.ptp(logits) > 0


# Networks that end in something else than one resize or zoom: their losses take the logits as they are.
NO_COARSE = {"dilation", "fcn", "gcn", "residual_fcn", "scnet_recon", "segnet", "segnet_basic", "tiramisu", "unet"}
NO_COARSE |= {"unet_encoder"}


@EVERY
def test_coarse_logits_are_what_the_logits_come_from(name):
    x = images(3, 33, 18, 3)  # the size of the test above, so that it is compiled already
    run = forward(name)
    if name == "deeplab_v1":  # several scales are several enlargements
        run = jax.jit(lambda v, x: build(name, multi_scale=False).apply(v, x, False))
    outputs = run(variables(name), x)
    found = {key.removeprefix("coarse/"): value for key, value in outputs.items() if key.startswith("coarse/")}
    assert ("logits" in found) == (MODELS[name][0] not in NO_COARSE)
    if name == "deeplab_v2":  # the smaller scale is enlarged twice
        assert "aux/scale100" in found and "aux/scale50" not in found
    else:
        assert {key for key in outputs if key.startswith("aux/")} <= set(found)
    for key, coarse in found.items():
        plan = RowBlocks(coarse.values.shape[-3:-1], x.shape[-3:-1], 7, coarse.alignment, coarse.grid)
        where = {"where": jnp.ones(x.shape[:-1], bool)}
        first = map_rows(lambda values, own: values[..., 0], plan, coarse.values, where)
        logits = np.asarray(outputs[key][..., 0])
        np.testing.assert_allclose(first, logits, rtol=1e-6, atol=1e-6 * max(1, np.abs(logits).max()))


@pytest.mark.slow
@EVERY
def test_eager_shapes_leading_dimensions_and_vmap_agree(name):
    v, x = variables(name), images(2, side(name, 33), side(name, 18), 3)
    model = build(name)
    expected = forward(name)(v, x)["logits"]
    # The batch's rows do not see each other, and leading dimensions are free.
    assert relative(forward(name)(v, x[0])["logits"], expected[0]) < 1e-4
    assert relative(forward(name)(v, x[:, None])["logits"][:, 0], expected) < 1e-4
    mapped = jax.jit(jax.vmap(lambda x: model.apply(v, x, False)["logits"]))(x)
    assert relative(mapped, expected) < 1e-4


@pytest.mark.slow
@EVERY
def test_gradients_reach_every_parameter(name):
    v, x = variables(name), images(4, side(name, 33), side(name, 40), 3)
    model = build(name)

    def loss(params):
        outputs, updated = model.apply(
            {**v, "params": params}, x, True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
        )
        picture = jax.random.normal(jax.random.key(3), outputs["logits"].shape)
        heads = [outputs[key] for key in outputs if key == "logits" or key.startswith("aux/")]
        return sum(jnp.mean(head * picture) for head in heads), updated

    gradients, updated = jax.jit(jax.grad(loss, has_aux=True))(v["params"])
    for path, g in jax.tree_util.tree_leaves_with_path(gradients):
        where = jax.tree_util.keystr(path)
        assert np.isfinite(g).all(), where
        assert (np.abs(g).max() > 0) != (name in FROZEN and FROZEN[name] in where), where
    old, new = jax.tree.leaves(v["batch_stats"]), jax.tree.leaves(updated.get("batch_stats", {}))
    moved = [not np.array_equal(a, b) for a, b in zip(old, new, strict=True)]
    assert all(moved) or not any(moved)  # frozen norms do not move


@pytest.mark.slow
@EVERY
def test_bfloat16_is_near_float32(name):
    v, x = variables(name), images(2, side(name, 33), side(name, 40), 3)
    exact = forward(name)(v, x)["logits"]
    rough = forward(name, jnp.bfloat16)(v, x)
    assert rough["logits"].dtype == jnp.float32
    assert any(value.dtype == jnp.bfloat16 for value in rough.values())
    difference = jnp.linalg.norm(rough["logits"] - exact) / jnp.linalg.norm(exact)
    assert float(difference) < ROUGH.get(name, 0.05)


@pytest.mark.slow
@EVERY
def test_two_devices_agree_with_one(name):
    v, x = variables(name), images(4, side(name, 33), side(name, 18), 3)
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = jax.device_put(v, NamedSharding(mesh, PartitionSpec()))
    model = build(name, **({"dropout_rate": 0.0} if "dropout_rate" in model_fields(name) else {}))
    key = {"dropout": jax.random.key(0)}

    def f(v, x):
        outputs, updated = model.apply(v, x, True, mutable=["batch_stats"], rngs=key)
        return outputs["logits"], updated.get("batch_stats", {})

    one = jax.jit(f)(v, x)
    compiled = jax.jit(f, out_shardings=(split, None)).lower(everywhere, jax.device_put(x, split)).compile()
    assert "all-gather" not in compiled.as_text()
    two = compiled(everywhere, jax.device_put(x, split))
    for a, b in zip(jax.tree.leaves(two), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.max(jnp.abs(b))))


def model_fields(name):
    return inspect.signature(resolve("models", MODELS[name][0])).parameters


@pytest.mark.slow
@EVERY
def test_four_images_are_learnt_by_heart(name):
    """Colours decide the class: a network must reach 95 % of the pixels of the images that it was shown."""
    pixels = side(name, 33)
    dropout = {"dropout_rate": 0.0} if "dropout_rate" in model_fields(name) else {}
    model = build(name, **HEART.get(name, {}), **dropout)
    rows, columns = np.indices((pixels, pixels))
    labels = jnp.asarray(np.stack([(rows // 11 + columns // 11 + i) % CLASSES for i in range(4)]), jnp.int32)
    x = jax.nn.one_hot(labels, CLASSES)[..., :3] * 2 - 0.5 + 0.1 * images(4, pixels, pixels, 3)
    v = jax.jit(lambda k: model.init({"params": k, "dropout": k}, x, False))(jax.random.key(0))
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, stats, state):
        def loss(params):
            outputs, updated = model.apply(
                {"params": params, **stats}, x, True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], labels)
            return jnp.mean(losses), (updated, jnp.mean(jnp.argmax(outputs["logits"], -1) == labels))

        gradients, (updated, accuracy) = jax.grad(loss, has_aux=True)(params)
        with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in integers
            change, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, change), updated, state, accuracy

    params, stats = v["params"], {key: value for key, value in v.items() if key != "params"}
    state, accuracy = optimizer.init(params), 0.0
    for _ in range(400):
        params, stats, state, accuracy = step(params, stats, state)
        if accuracy > 0.95:
            return
    assert accuracy > 0.95


@DEEPLABS
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
def test_what_a_model_refuses(name):
    v, least = variables(name), side(name, 1)
    for bad, message in (
        (jnp.zeros((1, 2 * least, 2 * least, 4)), "RGB"),
        (jnp.zeros((1, 2 * least, 2 * least, 3), jnp.uint8), "normalize"),
        (jnp.zeros((1, least - 1, least, 3)), f"at least {least}"),
    ):
        with pytest.raises(JaxsegError, match=message):
            jax.eval_shape(lambda v, x: build(name).apply(v, x, False), v, bad)


@DEEPLABS
def test_an_output_stride_that_the_backbone_cannot_give(name):
    with pytest.raises(JaxsegError, match="output_stride"):
        build(name, output_stride=7)
