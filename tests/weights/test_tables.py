"""Tables: every variable of the networks that they are for has one source, and no two have the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.backbones import mobilenet_v2, vgg16
from jaxseg.backbones.densenet import build_densenet
from jaxseg.backbones.mobilenet_v3 import build_mobilenet_v3
from jaxseg.backbones.resnet import build_resnet
from jaxseg.core.names import known_names, resolve
from jaxseg.models import deeplab_v3, deeplab_v3plus, fcn_resnet, lraspp, pspnet, unet_encoder, upernet
from jaxseg.weights import rules
from jaxseg.weights.expectations import differences

DEEPLAB_V3 = {"output_stride": 8, "head_convolution": True, "alignment": "half_pixel", "aux_tap": "stage3"}
LITE = DEEPLAB_V3 | {"backbone": "mobilenet_v3_large", "aspp_rates": (12, 24, 36), "output_stride": 16}
LITE |= {"aux_tap": "c2", "aux_channels": 10}
TORCH_MOBILENET_V2 = {"padding": "torch", "norm_epsilon": 1e-5, "last_convolution": True}
SMP_DEEPLAB_V3 = {"backbone": "resnet34", "output_stride": 8, "head_convolution": True}
SMP_DEEPLAB_V3 |= {"alignment": "align_corners", "backbone_options": {"dilate_first_unit": True}}
SMP_DEEPLAB_V3PLUS = {"aspp_rates": (12, 24, 36), "separable": True, "depthwise_norm": False}
SMP_DEEPLAB_V3PLUS |= {"encoder_convolutions": 1, "decoder_convolutions": 1}
SMP_DEEPLAB_V3PLUS |= {"backbone_options": {"dilate_first_unit": True}}
SMP_UPERNET = {"feature_norm": True, "pool_resize_first": False, "logits_alignment": "align_corners"}
SMP_UPERNET |= {"pyramid_channels": 256, "fpn_channels": 256, "backbone_options": {"stem": "conv7"}}
SMP_PSPNET = {"single_bin_norm": False, "fusion_kernel_size": 1, "classifier_kernel_size": 3, "channel_dropout": True}
SMP_PSPNET |= {"pyramid_channels": 128, "backbone_options": {"stem": "conv7", "stop_at_output_stride": True}}
RESNET_D = {"stem": "deep", "stem_channels": (32, 32, 64), "pooled_shortcut": True}


def over_mobilenet_v2(options, **changes):
    """The same network over torchvision's MobileNetV2."""
    return options | {"backbone": "mobilenet_v2", "backbone_options": TORCH_MOBILENET_V2 | changes}


NETWORKS = {
    "torchvision_resnet": [functools.partial(build_resnet, depth) for depth in (18, 50)],
    "timm_resnet_d": [functools.partial(build_resnet, depth, **RESNET_D) for depth in (18, 50)],
    "torchvision_mobilenet_v2": [
        functools.partial(mobilenet_v2.build, padding="torch", norm_epsilon=1e-5, last_convolution=last)
        for last in (False, True)
    ],
    "torchvision_mobilenet_v3": [functools.partial(build_mobilenet_v3, size) for size in ("large", "small")],
    "torchvision_densenet": [functools.partial(build_densenet, 121, layers=(2, 2, 2, 2))],
    "torchvision_vgg16": [functools.partial(vgg16.build, batch_norm=norm) for norm in (False, True)],
    "torchvision_deeplab_v3_mobilenet_v3": [functools.partial(deeplab_v3.build, num_classes=21, **LITE)],
    "torchvision_deeplab_v3": [functools.partial(deeplab_v3.build, num_classes=21, **DEEPLAB_V3)],
    "torchvision_lraspp": [functools.partial(lraspp.build, num_classes=21)],
    "torchvision_fcn_resnet": [
        functools.partial(fcn_resnet.build, num_classes=21, aux_tap=tap) for tap in ("", "stage3")
    ],
    "smp_unet": [functools.partial(unet_encoder.build, num_classes=2, backbone=f"resnet{n}") for n in (18, 50)],
    "smp_unet_mobilenet_v2": [
        functools.partial(
            unet_encoder.build, num_classes=2, backbone="mobilenet_v2", backbone_options=TORCH_MOBILENET_V2
        )
    ],
    "smp_deeplab_v3": [functools.partial(deeplab_v3.build, num_classes=2, **SMP_DEEPLAB_V3)],
    "smp_deeplab_v3plus": [functools.partial(deeplab_v3plus.build, num_classes=2, **SMP_DEEPLAB_V3PLUS)],
    "smp_upernet": [functools.partial(upernet.build, num_classes=2, **SMP_UPERNET)],
    "smp_pspnet": [functools.partial(pspnet.build, num_classes=2, **SMP_PSPNET)],
    "smp_deeplab_v3plus_mobilenet_v2": [
        functools.partial(
            deeplab_v3plus.build, num_classes=2, **over_mobilenet_v2(SMP_DEEPLAB_V3PLUS, dilate_first_unit=True)
        )
    ],
    "smp_upernet_mobilenet_v2": [functools.partial(upernet.build, num_classes=2, **over_mobilenet_v2(SMP_UPERNET))],
    "smp_pspnet_mobilenet_v2": [
        functools.partial(
            pspnet.build,
            num_classes=2,
            **over_mobilenet_v2(SMP_PSPNET, last_convolution=False, stop_at_output_stride=True),
        )
    ],
}
"""Table -> the networks that it serves, built as it expects them."""


def variable_names(module):
    image = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
    variables = jax.eval_shape(lambda k, x: module.init(k, x, False), jax.random.key(0), image)
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(variables)[0]]
    return ["/".join(key.key for key in path) for path in paths]


def is_rule(name):
    return callable(resolve("weights.tables", name, "TABLE"))


def test_every_rule_table_is_here():
    assert {name for name in known_names("weights.tables") if is_rule(name)} == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_variable_has_its_own_source_and_the_options_are_the_expected_ones(name):
    for build in NETWORKS[name]:
        names = variable_names(build())
        table = resolve("weights.tables", name, "TABLE")(names)
        assert not [n for n in names if n not in table]
        sources = [source.name for source in table.values()]
        assert len(set(sources)) == len(sources)
        expected = dict(resolve("weights.tables", name, "EXPECTS"))
        assert differences(expected, build(), "", {}) == []
        assert {"image_mean", "image_std"} <= set(expected)


@pytest.mark.parametrize("name", [name for name in known_names("weights.tables") if not is_rule(name)])
def test_plain_tables_name_each_array_once(name):
    table = resolve("weights.tables", name, "TABLE")
    sources = [s.name for s in table.values()]
    assert len(set(sources)) == len(sources)
    assert not any(s.startswith(tuple(resolve("weights.tables", name, "IGNORED")) or ("\0",)) for s in sources)
    assert {"image_mean", "image_std"} <= set(resolve("weights.tables", name, "EXPECTS"))


@pytest.mark.parametrize(
    "name, ours, theirs",
    [
        ("torchvision_resnet", "params/stem/conv/kernel", "conv1.weight"),
        ("torchvision_resnet", "params/stage3_unit12/conv2/norm/scale", "layer3.11.bn2.weight"),
        ("torchvision_resnet", "batch_stats/stage2_unit1/shortcut/norm/var", "layer2.0.downsample.1.running_var"),
        ("torchvision_mobilenet_v2", "params/block0/depthwise/conv/kernel", "features.1.conv.0.0.weight"),
        ("torchvision_mobilenet_v2", "params/block0/project/norm/bias", "features.1.conv.2.bias"),
        ("torchvision_mobilenet_v2", "batch_stats/block16/project/norm/mean", "features.17.conv.3.running_mean"),
        ("torchvision_mobilenet_v2", "params/block3/depthwise/conv/kernel", "features.4.conv.1.0.weight"),
        ("torchvision_deeplab_v3", "params/aspp/atrous2/norm/scale", "classifier.0.convs.2.1.weight"),
        ("torchvision_deeplab_v3", "params/aspp/image_pooling/conv/kernel", "classifier.0.convs.4.1.weight"),
        ("torchvision_deeplab_v3", "params/backbone/stem/norm/bias", "backbone.bn1.bias"),
        ("torchvision_deeplab_v3", "params/aux/classifier/bias", "aux_classifier.4.bias"),
    ],
)
def test_names(name, ours, theirs):
    assert resolve("weights.tables", name, "TABLE")([ours])[ours].name == theirs


def test_what_no_rule_is_about_has_no_source():
    assert resolve("weights.tables", "torchvision_resnet", "TABLE")(["params/stem/conv/depth", "params/x/kernel"]) == {}


def test_convolutions_are_turned():
    a = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert rules.convolution(a)[1, 2, 0, 1] == a[1, 0, 1, 2]
    assert rules.transposed_convolution(a)[1, 2, 0, 1] == a[0, 1, 1, 2]
    assert rules.convolution(a[0, 0]).shape == (1, 1, 5, 4) and rules.convolution(a[0, 0])[0, 0, 3, 2] == a[0, 0, 2, 3]
    np.testing.assert_array_equal(rules.swap_first_and_last_input()(a)[:, :, 0], rules.convolution(a)[:, :, 2])


def test_a_linear_layer_on_pixels_is_a_convolution_over_all_of_them():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(3, 2, 2)), rng.normal(size=(5, 12))
    kernel = rules.linear_on_pixels(2)(w)
    np.testing.assert_allclose(np.einsum("chw,hwco->o", x, kernel), w @ x.reshape(-1))


def test_rules_below_a_prefix_and_counting_from_another_number():
    inner = [rules.Rule(r"unit(\d+)/conv", rules.minus(1, 1, "blocks.{1}.c")), rules.Rule("out", r"o\g<0>")]
    table = rules.by_rules(rules.below("a.b/", "x.", inner))
    found = table(["params/a.b/unit3/conv/kernel", "params/a.b/out/bias", "params/aab/out/bias"])
    assert {k: s.name for k, s in found.items()} == {
        "params/a.b/unit3/conv/kernel": "x.blocks.2.c.weight",
        "params/a.b/out/bias": "x.oa.b/out.bias",
    }
