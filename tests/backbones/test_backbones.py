"""Parameter counts, strides, dilation and the layout of each backbone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.backbones import mobilenet_v2, resnet18, resnet34, resnet50, resnet101, resnet152
from jaxseg.backbones.mobilenet_v2 import divisible_by_8
from jaxseg.backbones.resnet import Basic, build_resnet
from jaxseg.core.errors import JaxsegError
from jaxseg.layers.norm import NormOptions

RESNET_D = {"stem": "deep", "stem_channels": (32, 32, 64), "pooled_shortcut": True}
IMAGE = jax.ShapeDtypeStruct((1, 65, 97, 3), jnp.float32)


def shapes(module, image=IMAGE):
    """Variables and features as shapes; nothing is computed."""
    variables = jax.eval_shape(lambda k, x: module.init(k, x, False), jax.random.key(0), image)
    return variables, jax.eval_shape(lambda v, x: module.apply(v, x, False), variables, image)


def count(module):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(module)[0]["params"]))


@pytest.mark.parametrize(
    "module, expected",
    [
        (resnet50.build(), 23_508_032),
        (resnet101.build(output_stride=8), 42_500_160),
        (resnet152.build(), 58_143_808),
        (resnet18.build(), 11_176_512),
        (resnet34.build(), 21_284_672),
        (resnet50.build(stem="deep"), 23_631_808),
        (resnet101.build(stem="deep", stride_in_1x1=True, stem_pool="caffe"), 42_623_936),
        (mobilenet_v2.build(), 1_811_712),
        (resnet18.build(**RESNET_D), 11_708_744 - 513_000),
        (resnet50.build(**RESNET_D), 25_576_264 - 2_049_000),
        (resnet101.build(**RESNET_D), 44_568_392 - 2_049_000),
        (resnet152.build(**RESNET_D), 60_212_040 - 2_049_000),
    ],
)
def test_parameter_counts(module, expected):
    """Published trunks; 18 and 34 are torchvision's classifiers less their 513,000 of the last layer, ResNet-D timm's.

    MobileNetV2: the ImageNet file's 3,506,153 less `Conv_1` (412,160) and the 1001-way `Logits` (1,282,281).
    """
    assert count(module) == expected


@pytest.mark.parametrize("build", [resnet50.build, mobilenet_v2.build])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_keys_are_strides(build, output_stride):
    _, features = shapes(build(output_stride=output_stride))
    strides = [s for s in (2, 4, 8, 16, 32) if s <= output_stride]
    assert {k for k in features if k[0] == "s" and k[1:].isdigit()} == {f"s{s}" for s in strides}
    for s in strides:
        assert features[f"s{s}"].shape[1:3] == (-(-65 // s), -(-97 // s))


@pytest.mark.parametrize(
    "build, output_stride, channels",
    [
        (resnet50.build, 32, [64, 256, 512, 1024, 2048]),
        (resnet50.build, 16, [64, 256, 512, 2048]),
        (resnet50.build, 8, [64, 256, 2048]),
        (mobilenet_v2.build, 32, [16, 24, 32, 96, 320]),
        (mobilenet_v2.build, 16, [16, 24, 32, 320]),
        (mobilenet_v2.build, 8, [16, 24, 320]),
        (functools.partial(resnet50.build, stop_at_output_stride=True), 8, [64, 256, 512]),
        (functools.partial(mobilenet_v2.build, stop_at_output_stride=True), 8, [16, 24, 32]),
        (functools.partial(mobilenet_v2.build, stop_at_output_stride=True), 16, [16, 24, 32, 96]),
    ],
)
def test_channels(build, output_stride, channels):
    _, features = shapes(build(output_stride=output_stride))
    assert [features[f"s{2 ** (i + 1)}"].shape[-1] for i in range(len(channels))] == channels


def convolutions(module):
    """(dilation, stride) of every 3x3 convolution in the order of the program, as XLA has them."""
    variables, _ = shapes(module)
    found = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "conv_general_dilated":
                spec = equation.params["dimension_numbers"].rhs_spec
                size = [equation.invars[1].aval.shape[i] for i in spec[2:]]
                if size == [3, 3]:
                    found.append((equation.params["rhs_dilation"][0], equation.params["window_strides"][0]))
            for name, value in equation.params.items():
                value = value[-1:] if name == "branches" else value
                for inner in value if isinstance(value, tuple | list) else (value,):
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        walk(inner)

    # Large enough that no tap of a dilated kernel falls into the padding, where it would be cut off.
    image = jax.ShapeDtypeStruct((1, 769, 769, 3), jnp.float32)
    walk(jax.make_jaxpr(lambda v, x: module.apply(v, x, False))(variables, image).jaxpr)
    return found


@pytest.mark.parametrize(
    "options, stage3, stage4",
    [
        ({"output_stride": 32}, [(1, 2)] + [(1, 1)] * 5, [(1, 2), (1, 1), (1, 1)]),
        ({"output_stride": 16}, [(1, 2)] + [(1, 1)] * 5, [(1, 1), (2, 1), (2, 1)]),
        ({"output_stride": 8}, [(1, 1)] + [(2, 1)] * 5, [(2, 1), (4, 1), (4, 1)]),
        ({"output_stride": 16, "multi_grid": (1, 2, 4)}, [(1, 2)] + [(1, 1)] * 5, [(2, 1), (4, 1), (8, 1)]),
        ({"output_stride": 8, "multi_grid": (1, 2, 4)}, [(1, 1)] + [(2, 1)] * 5, [(4, 1), (8, 1), (16, 1)]),
    ],
)
def test_resnet_rates_are_torchvisions(options, stage3, stage4):
    found = convolutions(resnet50.build(**options))
    assert found[:7] == [(1, 1)] * 3 + [(1, 2)] + [(1, 1)] * 3
    assert found[7:13] == stage3
    assert found[13:] == stage4


def test_resnet_rates_of_the_first_unit():
    found = convolutions(resnet50.build(output_stride=8, dilate_first_unit=True))
    assert found[7:] == [(2, 1)] * 6 + [(4, 1)] * 3
    assert convolutions(resnet50.build(dilate_first_unit=True)) == convolutions(resnet50.build())


@pytest.mark.parametrize(
    "size, pool, sizes",
    [
        (65, "floor", (33, 17)),
        (62, "floor", (31, 16)),
        (62, "ceil", (31, 16)),
        (64, "floor", (32, 16)),
        (64, "ceil", (32, 17)),
        (64, "caffe", (32, 16)),
        (1, "caffe", (1, 1)),
    ],
)
def test_resnet_stems(size, pool, sizes):
    """The deep stem ends with twice the channels; ceil adds a window where an even map has padding."""
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    _, features = shapes(resnet18.build(stem="deep", stem_pool=pool), image)
    assert features["s2"].shape == (1, sizes[0], sizes[0], 128)
    assert features["stem_pool"].shape == (1, sizes[1], sizes[1], 128)
    assert features["s4"].shape == (1, sizes[1], sizes[1], 64)


@pytest.mark.parametrize(
    "pool, strides, expected",
    [
        # A window beyond the border is the mean of what is there; with stride 1, of the zeros too.
        ("stride", 2, [[3, 4.5], [7.5, 9]]),
        ("same", 1, [[3, 4, 2.25], [6, 7, 3.75], [3.75, 4.25, 2.25]]),
        ("", 2, [[1, 3], [7, 9]]),
    ],
)
def test_shortcuts_by_average_pooling(pool, strides, expected):
    image = jnp.arange(1.0, 10).reshape(1, 3, 3, 1)
    unit = Basic(1, strides, project_shortcut=True, shortcut_pool=pool, norm=NormOptions(epsilon=0.0))
    variables = unit.init(jax.random.key(0), image, False)
    for name in ("conv1", "conv2"):
        variables["params"][name]["conv"]["kernel"] *= 0
    variables["params"]["shortcut"]["conv"]["kernel"] = jnp.ones((1, 1, 1, 1))
    np.testing.assert_allclose(unit.apply(variables, image, False)[0, :, :, 0], expected, rtol=1e-6)


def test_what_lies_beyond_the_output_stride_is_left_out():
    for build in (resnet18.build, mobilenet_v2.build):
        whole, short = (
            shapes(build(output_stride=s, **o)) for s, o in ((32, {}), (8, {"stop_at_output_stride": True}))
        )
        assert set(short[0]["params"]) < set(whole[0]["params"])
        assert {k: v.shape for k, v in short[1].items()} == {k: whole[1][k].shape for k in short[1]}
        assert "s8" in short[1] and "s16" not in short[1]


def test_resnet_stride_in_the_first_1x1():
    assert [s for _, s in convolutions(resnet50.build(stride_in_1x1=True))] == [1] * 16


@pytest.mark.parametrize(
    "output_stride, expected",
    [
        (32, [(1, 1)] * 4),
        (16, [(1, 1), (2, 1), (2, 1), (2, 1)]),
        (8, [(2, 1), (4, 1), (4, 1), (4, 1)]),
    ],
)
def test_mobilenet_rates_are_deeplabs(output_stride, expected):
    found = convolutions(mobilenet_v2.build(output_stride=output_stride))
    last = found[-4:]
    if output_stride == 32:
        expected = [(1, 2), *expected[1:]]
    assert last == expected
    eager = convolutions(mobilenet_v2.build(output_stride=output_stride, dilate_first_unit=True))
    # The units that lose their stride (blocks 6 and 13) have the rate of those after them.
    changed = {i: 32 // output_stride // (2 if i == 7 else 1) for i in (7, 14) if found[i] != eager[i]}
    assert changed == {i: eager[i][0] for i in changed} and len(changed) == {32: 0, 16: 1, 8: 2}[output_stride]
    if output_stride == 8:
        # Block 6 loses its stride and keeps rate 1; blocks 7 to 13 have rate 2.
        assert found[-11:-3] == [(1, 1)] + [(2, 1)] * 7


def test_channels_are_multiples_of_8():
    assert [divisible_by_8(c) for c in (1, 12, 16 * 0.35, 32 * 0.75, 24 * 1.4, 19)] == [8, 16, 8, 24, 32, 24]


def test_remat_changes_nothing_but_memory():
    x = jax.random.normal(jax.random.key(0), (2, 33, 32, 3))
    v = jax.jit(lambda k: build_resnet(18, width=8).init(k, x, False))(jax.random.key(1))

    def gradient(**options):
        module = build_resnet(18, width=8, freeze_norm=True, **options)

        def loss(p):
            return jnp.mean(module.apply({**v, "params": p}, x, True)["s32"] ** 2)

        return jax.jit(jax.grad(loss))(v["params"])

    for a, b in zip(jax.tree.leaves(gradient()), jax.tree.leaves(gradient(remat=True)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.max(jnp.abs(a))))


def test_remat_of_mobilenet_keeps_names_and_recomputes_blocks():
    plain, saved = mobilenet_v2.build(), mobilenet_v2.build(remat=True)
    variables, _ = shapes(plain)
    assert jax.tree.structure(variables) == jax.tree.structure(shapes(saved)[0])
    for module, blocks in ((plain, 0), (saved, 17)):
        jaxpr = jax.make_jaxpr(lambda v, x, module=module: module.apply(v, x, False))(variables, IMAGE)
        assert sum(e.primitive.name in ("checkpoint", "remat2", "remat") for e in jaxpr.eqns) == blocks


def test_errors():
    with pytest.raises(JaxsegError, match="resnet50: output_stride = 64"):
        resnet50.build(output_stride=64)
    with pytest.raises(JaxsegError, match="mobilenet_v2: output_stride = 12"):
        mobilenet_v2.build(output_stride=12)
    with pytest.raises(JaxsegError, match="multi_grid"):
        resnet50.build(multi_grid=(1, 2))
    with pytest.raises(JaxsegError, match="stem = 'depp' is not one of conv7, deep"):
        resnet50.build(stem="depp")
    with pytest.raises(JaxsegError, match="stem_pool = 'same'"):
        resnet50.build(stem_pool="same")
    with pytest.raises(JaxsegError, match=r"stem_channels = \(8, 8\) must be three for stem 'deep'"):
        resnet50.build(stem="deep", stem_channels=(8, 8))
    with pytest.raises(JaxsegError, match="last_convolution = True follows the last unit"):
        mobilenet_v2.build(output_stride=8, last_convolution=True, stop_at_output_stride=True)
    with pytest.raises(JaxsegError, match="resnet51"):
        build_resnet(51)
