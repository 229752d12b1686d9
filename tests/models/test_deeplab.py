"""DeepLab v3 and v3+: parameter counts against public figures, options, values of the parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError, UnknownNameError
from jaxseg.models import deeplab_v3, deeplab_v3plus
from jaxseg.ops.resize import resize

MODULES = (deeplab_v3, deeplab_v3plus)


def count(module):
    image = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
    variables = jax.eval_shape(lambda k, x: module.init(k, x, False), jax.random.key(0), image)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    "module, options, expected",
    [
        (deeplab_v3plus, {"backbone": "resnet101"}, 59_344_309),
        (deeplab_v3plus, {"backbone": "resnet101", "output_stride": 8}, 59_344_309),
        (deeplab_v3, {"backbone": "resnet50"}, 39_048_533),
        (deeplab_v3, {"backbone": "resnet101"}, 58_040_661),
        (deeplab_v3, {"backbone": "resnet50", "head_convolution": True, "output_stride": 8}, 39_638_869),
        (deeplab_v3, {"backbone": "resnet50", "head_convolution": True, "aux_tap": "stage3"}, 42_004_074),
        (deeplab_v3, {"backbone": "resnet101", "head_convolution": True, "aux_tap": "stage3"}, 60_996_202),
        (deeplab_v3, {"backbone": "mobilenet_v2", "aspp_rates": ()}, 2_113_557),
    ],
)
def test_parameter_counts(module, options, expected):
    """Public figures for 21 classes: papers, torchvision's releases, the TF-slim file."""
    assert count(module.build(num_classes=21, **options)) == expected


def test_separable_saves_what_the_layer_table_says():
    """A 3x3 convolution c -> n with batch norm has 9cn + 2n values, a separable one 9c + 2c + cn + 2n."""
    layers = [(2048, 256)] * 3 + [(304, 256), (256, 256)]
    saved = sum(9 * c * n - 11 * c - c * n for c, n in layers)
    plain = count(deeplab_v3plus.build(num_classes=21, backbone="resnet101"))
    assert plain - count(deeplab_v3plus.build(num_classes=21, backbone="resnet101", separable=True)) == saved


@pytest.fixture(scope="module")
def tiny():
    """A narrow DeepLab v3+ with its variables, jitted, and an odd image."""
    model = deeplab_v3plus.build(
        num_classes=4,
        backbone="mobilenet_v2",
        backbone_options={"width": 0.1},
        aspp_rates=(6,),
        aspp_channels=8,
        decoder_channels=8,
        low_level_channels=4,
        aux_tap="s8",
        aux_channels=8,
    )
    image = jax.random.normal(jax.random.key(0), (2, 37, 50, 3))
    variables = jax.jit(lambda k: model.init(k, image, False))(jax.random.key(1))
    return model, variables, image, jax.jit(lambda v, x: model.apply(v, x, False))(variables, image)


def test_parts_have_the_strides_of_the_paper(tiny):
    _, _, _, outputs = tiny
    assert outputs["aspp"].shape == (2, 3, 4, 8)
    assert outputs["decoder"].shape == (2, 10, 13, 8)
    assert outputs["logits"].shape == outputs["aux/backbone"].shape == (2, 37, 50, 4)
    assert outputs["logits"].dtype == jnp.float32


def test_logits_are_the_resized_classifier(tiny):
    _, variables, _, outputs = tiny
    kernel = variables["params"]["classifier"]["kernel"][0, 0]
    expected = resize(outputs["decoder"] @ kernel, (37, 50), alignment="align_corners")
    assert float(jnp.max(jnp.abs(expected))) > 1e-3
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-6)


def test_initial_values_of_the_classifier(tiny):
    _, variables, _, _ = tiny
    np.testing.assert_array_equal(variables["params"]["classifier"]["bias"], 0)
    assert float(jnp.max(jnp.abs(variables["params"]["classifier"]["kernel"]))) < 0.03


def test_alignment_is_an_option():
    image = jax.random.normal(jax.random.key(0), (1, 34, 34, 3))
    shared = {"num_classes": 3, "backbone": "mobilenet_v2", "backbone_options": {"width": 0.1}, "aspp_channels": 8}

    def both(**options):
        model = deeplab_v3.build(**shared, aspp_rates=(), **options)
        variables = jax.jit(lambda k: model.init(k, image, False))(jax.random.key(1))
        outputs = jax.jit(lambda v: model.apply(v, image, False))(variables)
        return outputs["logits"], outputs["low_logits"]

    for alignment in ("half_pixel", "align_corners"):
        logits, low = both(alignment=alignment)
        np.testing.assert_allclose(logits, resize(low, (34, 34), alignment=alignment), atol=1e-6)
        same_corner = np.allclose(logits[0, -1, -1], low[0, -1, -1], atol=1e-7)
        assert same_corner, "both conventions keep the corner; a shifted grid would not"


@pytest.mark.parametrize("freeze", ["freeze_norm", "freeze_backbone_norm"])
def test_frozen_norm_keeps_its_statistics(freeze):
    model = deeplab_v3.build(
        num_classes=3,
        backbone="mobilenet_v2",
        backbone_options={"width": 0.1},
        aspp_channels=8,
        aspp_rates=(),
        **{freeze: True},
    )
    image = jax.random.normal(jax.random.key(0), (2, 33, 33, 3))
    variables = jax.jit(lambda k: model.init(k, image, False))(jax.random.key(1))
    _, updated = jax.jit(
        lambda v: model.apply(v, image, True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
    )(variables)

    def moved(part):
        old, new = variables["batch_stats"][part], updated["batch_stats"][part]
        return [not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)]

    assert not any(moved("backbone"))
    assert all(moved("aspp")) == (freeze == "freeze_backbone_norm")


@pytest.mark.parametrize("module", MODULES)
def test_which_norms_the_options_freeze(module):
    def frozen(**options):
        model = module.build(num_classes=3, backbone="resnet50", **options)
        return model.backbone.norm.frozen, model.aspp.norm.frozen

    assert frozen() == (False, False)
    assert frozen(freeze_norm=True) == (True, True)
    assert frozen(freeze_backbone_norm=True) == (True, False)


@pytest.mark.parametrize("module", MODULES)
def test_errors_of_build(module):
    with pytest.raises(JaxsegError, match="output_stride = 12"):
        module.build(num_classes=3, output_stride=12)
    with pytest.raises(UnknownNameError, match="resnet50"):
        module.build(num_classes=3, backbone="resnet5")
    with pytest.raises(UnknownNameError, match="backbone_options.widht.*width"):
        module.build(num_classes=3, backbone_options={"widht": 2})
    with pytest.raises(JaxsegError, match="rates"):
        module.build(num_classes=3, aspp_rates=(0,))


def test_a_negative_number_of_convolutions():
    with pytest.raises(JaxsegError, match="encoder_convolutions"):
        deeplab_v3plus.build(num_classes=3, encoder_convolutions=-1)


def test_unknown_tap_lists_the_near_ones():
    model = deeplab_v3plus.build(num_classes=3, backbone="mobilenet_v2", low_level="s4_depth")
    image = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    with pytest.raises(UnknownNameError, match="low_level = 's4_depth'.*s4_depthwise"):
        jax.eval_shape(lambda k, x: model.init(k, x, False), jax.random.key(0), image)
