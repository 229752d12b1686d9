"""FCN: the published shape trace, crops, and what an untrained network says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.models import fcn
from jaxseg.ops.transposed import bilinear_conv_transpose

NARROW = {"backbone_options": {"width": 2}, "fc_channels": 4}


def shapes(module, *size):
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    variables = jax.eval_shape(lambda k, x: module.init(k, x, False), jax.random.key(0), image)
    outputs = jax.eval_shape(lambda v, x: module.apply(v, x, False), variables, image)
    return variables, outputs


@pytest.mark.parametrize(
    "size, fc6, upscore2, upscore_pool4, up",
    [
        (224, 8, 18, 38, (288, 304, 312)),
        (375, 12, 26, 54, (416, 432, 440)),
        (500, 16, 34, 70, (544, 560, 568)),
        (512, 17, 36, 74, (576, 592, 600)),
        (1024, 33, 68, 138, (1088, 1104, 1112)),
    ],
)
def test_the_published_shape_trace(size, fc6, upscore2, upscore_pool4, up):
    _, outputs = shapes(fcn.build(num_classes=3, **NARROW), size, size)
    assert outputs["fc7"].shape[1] == outputs["score_fr"].shape[1] == fc6
    assert outputs["upscore2"].shape[1] == outputs["score_pool4"].shape[1] == upscore2
    assert outputs["upscore_pool4"].shape[1] == outputs["score_pool3"].shape[1] == upscore_pool4
    assert outputs["logits"].shape == (1, size, size, 3)
    # Before the crop: 32s from fc7, 16s from the sum at pool4, 8s from the sum at pool3; what is cropped is there.
    for (factor, offset), side, whole in zip(
        (fcn.LAST["32s"], fcn.LAST["16s"], fcn.LAST["8s"]), (fc6, upscore2, upscore_pool4), up, strict=True
    ):
        assert (side - 1) * factor + 2 * factor == whole >= offset + size


def test_alexnets_shape_trace():
    _, outputs = shapes(fcn.build(num_classes=3, variant="32s", backbone="alexnet", fc_channels=4), 500, 500)
    assert outputs["fc7"].shape[1] == 16 and (16 - 1) * 32 + 63 == 543 >= 500 + 18
    assert outputs["logits"].shape == (1, 500, 500, 3)
    for variant in ("32s", "8s"):
        backbone = "alexnet" if variant == "32s" else "vgg16"
        _, outputs = shapes(fcn.build(num_classes=3, variant=variant, backbone=backbone, fc_channels=4), 1, 37)
        assert outputs["logits"].shape == (1, 1, 37, 3)


@pytest.fixture(scope="module")
def start():
    """Variables of a narrow FCN-8s (the same for 8s at once), and an image."""
    image = jax.random.normal(jax.random.key(0), (1, 33, 18, 3))
    model = fcn.build(num_classes=3, variant="8s_at_once", **NARROW)
    return jax.jit(lambda k: model.init(k, image, False))(jax.random.key(1)), image


def test_a_new_network_is_undecided(start):
    variables, image = start
    model = fcn.build(num_classes=3, variant="8s_at_once", **NARROW)
    np.testing.assert_array_equal(jax.jit(lambda v: model.apply(v, image, False))(variables)["logits"], 0)


@pytest.mark.parametrize("variant, factors", [("8s", (1, 1)), ("8s_at_once", (0.01, 0.0001))])
def test_crops_scales_and_sums(start, variant, factors):
    variables, image = start
    leaves, tree = jax.tree.flatten(variables["params"])
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noisy = [leaf + 0.3 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, noisy)
    for tap, factor in zip(("pool4", "pool3"), factors, strict=True):
        # Every term counts alike, so that a wrong crop of any shows.
        params[f"score_{tap}"]["kernel"] = params[f"score_{tap}"]["kernel"] / factor
    model = fcn.build(num_classes=3, variant=variant, **NARROW)
    outputs = jax.jit(lambda p, x: model.apply({"params": p}, x, False))(params, image)

    def enlarged(x, factor, kernel_size, offset, size):
        return bilinear_conv_transpose(x, kernel_size=kernel_size, strides=factor, padding=offset, size=size)

    x = outputs["score_fr"]
    for tap, offset, factor in zip(("pool4", "pool3"), (5, 9), factors, strict=True):
        h, w = (2 * n + 2 for n in x.shape[1:3])
        p = params[f"score_{tap}"]
        score = outputs[f"backbone/{tap}"][:, offset : offset + h, offset : offset + w] * factor @ p["kernel"][0, 0]
        assert float(jnp.std(score)) > 1e-2
        x = enlarged(x, 2, 4, 0, (h, w)) + score + p["bias"]
    expected = enlarged(x, 8, 16, 31, image.shape[1:3])
    np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-4, atol=1e-4)


def test_errors():
    for options, message in (
        ({"variant": "4s"}, "variant = '4s' is not one of 32s"),
        ({"backbone": "resnet50"}, "backbone = 'resnet50'"),
        ({"deconvolution": "learned"}, "deconvolution"),
        ({"backbone": "alexnet"}, "no variant '8s'"),
        ({"backbone_options": {"widht": 2}}, "widht"),
    ):
        with pytest.raises(JaxsegError, match=message):
            fcn.build(num_classes=3, **options)
