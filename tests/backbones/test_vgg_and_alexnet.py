"""VGG-16 and CaffeNet: parameter counts, FCN's shape trace, the variants that other networks stand on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.backbones import alexnet, vgg16
from jaxseg.core.errors import JaxsegError
from jaxseg.layers.fully_connected import FullyConnectedConvs
from jaxseg.ops.pooling import unpool


def shapes(module, *size):
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    variables = jax.eval_shape(lambda k, x: module.init(k, x, False), jax.random.key(0), image)
    return variables, jax.eval_shape(lambda v, x: module.apply(v, x, False), variables, image)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def head_count(channels, **options):
    x = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    layer = FullyConnectedConvs(**options)
    return count(jax.eval_shape(lambda k, x: layer.init(k, x, False), jax.random.key(0), x)["params"])


def test_parameter_counts():
    """Layer table of the paper; torchvision's vgg16_bn has 8,448 values of batch norm more."""
    variables, _ = shapes(vgg16.build(), 64, 64)
    assert count(variables["params"]) == 14_714_688
    variables, _ = shapes(vgg16.build(batch_norm=True), 64, 64)
    assert count(variables["params"]) == 14_714_688 + 2 * 4_224
    assert 14_714_688 + head_count(512) == 134_260_544
    # DeepLab v1's trunks, with the 21 classes' 1x1 classifier on top.
    for features, options, expected in (
        (4096, {"kernel_size": 7, "dilation": 4}, 134_346_581),
        (4096, {"kernel_size": 4, "dilation": 4}, 65_140_565),
        (1024, {"kernel_size": 3, "dilation": 12}, 20_505_429),
    ):
        head = head_count(512, features=features, padding="same", **options)
        assert 14_714_688 + head + features * 21 + 21 == expected
    # CaffeNet with fc6, fc7 and the classifier.
    variables, _ = shapes(alexnet.build(), 99, 99)
    head = head_count(256, kernel_size=6)
    assert count(variables["params"]) + head + 4096 * 21 + 21 == 56_954_261


@pytest.mark.parametrize(
    "size, conv, pools",
    [
        (224, 422, (211, 106, 53, 27, 14)),
        (375, 573, (287, 144, 72, 36, 18)),
        (500, 698, (349, 175, 88, 44, 22)),
        (512, 710, (355, 178, 89, 45, 23)),
        (1024, 1222, (611, 306, 153, 77, 39)),
    ],
)
def test_fcns_shape_trace(size, conv, pools):
    _, features = shapes(vgg16.build(first_padding=100, ceil=True), size, size)
    assert features["stage1"].shape == (1, conv, conv, 64)
    assert tuple(features[f"pool{i}"].shape[1] for i in range(1, 6)) == pools


def test_alexnets_shape_trace():
    _, features = shapes(alexnet.build(first_padding=100), 500, 500)
    assert [features[k].shape[1] for k in ("conv1", "pool1", "pool2", "pool5")] == [173, 86, 43, 21]
    assert [features[f"s{s}"].shape[-1] for s in (4, 8, 16, 32)] == [96, 256, 256, 256]


def test_vgg_keys_are_strides():
    for output_stride in (8, 16, 32):
        _, features = shapes(vgg16.build(output_stride=output_stride, ceil=True), 65, 97)
        found = {k: v.shape[1:] for k, v in features.items() if k[0] == "s" and k[1:].isdigit()}
        channels = {1: 64, 2: 128, 4: 256, 8: 512, 16: 512, 32: 512}
        expected = {f"s{s}": (-(-65 // s), -(-97 // s), c) for s, c in channels.items() if s <= output_stride}
        assert found == expected
        assert features["pool5"].shape == features[f"s{output_stride}"].shape


def test_deeplabs_and_the_dilated_front_ends_sizes():
    """321 -> 161, 81, 41 and stays; the front end: 900 -> 896, 448, 444, 222, 216, 108, 102, 90, fc6 66."""
    _, features = shapes(vgg16.build(output_stride=8, pool_window=3, ceil=True), 321, 321)
    assert [features[f"pool{i}"].shape[1] for i in range(1, 6)] == [161, 81, 41, 41, 41]
    _, features = shapes(vgg16.build(output_stride=8, padding="valid"), 900, 900)
    names = ("stage1", "pool1", "stage2", "pool2", "stage3", "pool3", "stage4", "pool4", "stage5", "pool5")
    assert [features[n].shape[1] for n in names] == [896, 448, 444, 222, 216, 108, 102, 102, 90, 90]
    layer = FullyConnectedConvs(features=1, kernel_size=7, dilation=4)
    x = jax.ShapeDtypeStruct((1, 90, 90, 4), jnp.float32)
    assert jax.eval_shape(lambda k, x: layer.init_with_output(k, x, False)[0], jax.random.key(0), x).shape[1] == 66


@pytest.fixture(scope="module")
def narrow():
    """A VGG of width 2 with its variables: the same for every variant without batch norm."""
    module = vgg16.build(width=2, ceil=True)
    image = jax.random.normal(jax.random.key(0), (1, 45, 38, 3))
    return jax.jit(lambda k: module.init(k, image, False))(jax.random.key(1)), image


def test_indices_lead_back(narrow):
    variables, image = narrow
    module = vgg16.build(width=2, ceil=True, indices=True)
    plain = vgg16.build(width=2, ceil=True)
    features, expected = jax.jit(lambda v, x: (module.apply(v, x, False), plain.apply(v, x, False)))(variables, image)
    np.testing.assert_array_equal(features["s32"], expected["s32"])
    for i in range(1, 6):
        stage = np.asarray(features[f"stage{i}"])
        back = np.asarray(unpool(features[f"pool{i}"], features[f"indices{i}"], stage.shape[1:3]))
        assert set(np.unique(back - stage * (back != 0))) <= {0}
        assert np.count_nonzero(back) == np.count_nonzero(features[f"pool{i}"])


def test_remat_and_bfloat16(narrow):
    variables, image = narrow

    def gradient(**options):
        module = vgg16.build(width=2, ceil=True, **options)
        return jax.jit(jax.grad(lambda v: jnp.sum(module.apply(v, image, True)["s32"].astype(jnp.float32))))(variables)

    plain, again = gradient(), gradient(remat=True)
    assert jax.tree.structure(plain) == jax.tree.structure(again)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.max(jnp.abs(a))))
    _, features = shapes(vgg16.build(dtype=jnp.bfloat16), 32, 32)
    assert features["s32"].dtype == jnp.bfloat16


def test_errors():
    for options, message in (
        ({"output_stride": 4}, "output_stride = 4"),
        ({"padding": "same"}, "padding = 'same'"),
        ({"pool_window": 4}, "pool_window"),
        ({"pool_window": 3, "indices": True}, "overlap"),
    ):
        with pytest.raises(JaxsegError, match=message):
            vgg16.build(**options)
    with pytest.raises(JaxsegError, match="multiple of 6"):
        alexnet.build(width=64)
    with pytest.raises(JaxsegError, match="output_stride = 16"):
        alexnet.build(output_stride=16)
