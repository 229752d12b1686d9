"""Xception, MobileNetV1 and V3, DenseNet: parameter counts, strides, channels, atrous rates."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.backbones import (
    densenet121,
    mobilenet_v1,
    mobilenet_v2,
    mobilenet_v3_large,
    mobilenet_v3_small,
    xception41,
    xception65,
    xception71,
)
from jaxseg.backbones.densenet import TABLE, _average_pool, build_densenet
from jaxseg.backbones.mobilenet_v3 import build_mobilenet_v3
from jaxseg.backbones.xception import build_xception
from jaxseg.core.errors import JaxsegError
from tests.backbones.test_backbones import IMAGE, convolutions, count, shapes

SHALLOW = (1, 1, 1, 1)


@pytest.mark.parametrize(
    "module, expected",
    [
        (xception41.build(), 24_920_560),
        (xception65.build(), 37_867_312),
        (mobilenet_v1.build(), 3_206_976),
        (mobilenet_v2.build(last_convolution=True), 2_223_872),
        (mobilenet_v3_large.build(), 2_971_952),
        (mobilenet_v3_small.build(), 927_008),
        (densenet121.build(), 6_953_856),
    ],
)
def test_parameter_counts(module, expected):
    """Xception: the layer table. Others: Keras' and torchvision's published counts less their classifiers."""
    assert count(module) == expected


PYRAMIDS = [
    (xception41.build, [128, 256, 728, 1024, 2048], 2048),
    (mobilenet_v1.build, [64, 128, 256, 512, 1024], 1024),
    (mobilenet_v3_large.build, [16, 24, 40, 112, 960], 960),
    (mobilenet_v3_small.build, [16, 16, 24, 48, 576], 576),
    (densenet121.build, [64, 256, 512, 1024, 1024], 1024),
]


@pytest.mark.parametrize("build, channels, deepest", PYRAMIDS)
@pytest.mark.parametrize("output_stride", [16])
def test_keys_are_strides(build, channels, deepest, output_stride):
    _, features = shapes(build(output_stride=output_stride))
    strides = [s for s in (2, 4, 8, 16, 32) if s <= output_stride]
    assert {k for k in features if k[0] == "s" and k[1:].isdigit()} == {f"s{s}" for s in strides}
    floors = "transition1_conv" in shapes(build())[0]["params"]
    for stride, expected in zip(strides, channels, strict=False):
        found = features[f"s{stride}"].shape
        sides = {65: {2: 33, 4: 17, 8: 8, 16: 4, 32: 2}, 97: {2: 49, 4: 25, 8: 12, 16: 6, 32: 3}}
        assert found[1:3] == tuple(sides[n][stride] if floors else -(-n // stride) for n in (65, 97))
        assert found[3] == (deepest if stride == output_stride else expected)


def test_xception_71_splits_its_entry_flow():
    _, features = shapes(xception71.build())
    found = [features[f"entry{i}"].shape[1:] for i in range(1, 6)]
    assert found == [(17, 25, 128), (17, 25, 256), (9, 13, 256), (9, 13, 728), (5, 7, 728)]
    assert features["s4"].shape[1:] == (17, 25, 256)


@pytest.mark.parametrize(
    "output_stride, entry3, middle, exit1, exit2",
    [(32, (1, 2), 1, [(1, 1), (1, 1), (1, 2)], 1), (16, (1, 2), 1, [(1, 1)] * 3, 2), (8, (1, 1), 2, [(2, 1)] * 3, 4)],
)
def test_xception_rates(output_stride, entry3, middle, exit1, exit2):
    found = convolutions(xception41.build(output_stride=output_stride))
    assert found[:11] == [(1, 2), (1, 1)] + [(1, 1), (1, 1), (1, 2)] * 2 + [(1, 1), (1, 1), entry3]
    assert found[11:35] == [(middle, 1)] * 24
    assert found[35:38] == exit1
    assert found[38:] == [(exit2, 1)] * 3


def test_the_low_level_features_come_before_the_stride_and_any_relu():
    x = jax.random.normal(jax.random.key(0), (1, 33, 33, 3))
    module = build_xception(41, width=1 / 16)
    low_level = jax.jit(lambda k: module.init_with_output(k, x, False)[0]["s4"])(jax.random.key(1))
    assert low_level.shape == (1, 9, 9, 16) and float(low_level.min()) < 0


@pytest.mark.parametrize("build", [mobilenet_v1.build, mobilenet_v3_small.build])
def test_remat_keeps_names(build):
    plain, saved = shapes(build())[0], shapes(build(remat=True))[0]
    assert jax.tree.structure(plain) == jax.tree.structure(saved)


def test_mobilenet_v3_dilates_from_the_strided_unit_on():
    """torchvision's rule: of large's last stride becomes rate 2 at once."""
    found = []

    def record(call, arguments, options, context):
        if context.module.name == "depthwise":
            found.append((context.module.strides, context.module.dilation))
        return call(*arguments, **options)

    with nn.intercept_methods(record):
        jax.eval_shape(lambda x: mobilenet_v3_large.build(output_stride=16).init(jax.random.key(0), x, False), IMAGE)
    assert found == [(1, 1), (2, 1), (1, 1), (2, 1)] + [(1, 1)] * 2 + [(2, 1)] + [(1, 1)] * 5 + [(1, 2)] * 3


@pytest.mark.parametrize("depth", TABLE)
def test_a_densenets_name_counts_its_layers(depth):
    """Two a dense layer, the stem, three transitions and the classifier."""
    assert depth == 2 * sum(TABLE[depth][2]) + 5


def test_densenet_dilates_the_blocks_after_a_lost_pooling():
    found = convolutions(densenet121.build(output_stride=8))
    assert found == [(1, 1)] * 18 + [(2, 1)] * 24 + [(4, 1)] * 16


@pytest.mark.parametrize("remat", [False, True])
def test_a_densenets_blocks_at_test_lie_in_one_array_and_are_those_in_pieces(remat):
    """With frozen norms training does what test does, in pieces."""
    module = build_densenet(121, growth=2, layers=(2, 3, 1, 2), freeze_norm=True, remat=remat)
    image = jax.random.normal(jax.random.key(0), (2, 41, 33, 3))
    variables = jax.jit(lambda key, image: module.init(key, image, False))(jax.random.key(1), image)
    keys = iter(jax.random.split(jax.random.key(2), 200))
    stats = jax.tree.map(lambda x: x - 0.5 * jax.random.uniform(next(keys), x.shape), variables["batch_stats"])
    apply = jax.jit(module.apply, static_argnums=2)
    tested, trained = (apply({**variables, "batch_stats": stats}, image, train) for train in (False, True))
    chex.assert_trees_all_close(tested, trained, rtol=1e-5, atol=1e-5)
    assert all(np.abs(features).max() > 1e-2 for features in tested.values())


def test_tiny_images():
    module = build_densenet(121, growth=4, layers=SHALLOW)
    for size in ((1, 1), (2, 1), (31, 5)):
        _, features = shapes(module, jax.ShapeDtypeStruct((1, *size, 3), jnp.float32))
        assert features["s32"].shape[1:3] == (1, 1)


def test_average_pooling():
    x = jnp.arange(15.0).reshape(1, 3, 5, 1)
    np.testing.assert_array_equal(_average_pool(x)[0, ..., 0], [[3, 5]])


def test_errors():
    with pytest.raises(JaxsegError, match="xception50 does not exist"):
        build_xception(50)
    with pytest.raises(JaxsegError, match="xception65: output_stride = 4"):
        xception65.build(output_stride=4)
    with pytest.raises(JaxsegError, match="mobilenet_v3_medium"):
        build_mobilenet_v3("medium")
    with pytest.raises(JaxsegError, match="mobilenet_v1: output_stride = 64"):
        mobilenet_v1.build(output_stride=64)
    with pytest.raises(JaxsegError, match="densenet100"):
        build_densenet(100)
    with pytest.raises(JaxsegError, match="layers"):
        build_densenet(121, layers=(1, 2))
