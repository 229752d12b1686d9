"""The real TF-slim files: stored logits, odd sizes against a second forward pass, and the file's own counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxseg.backbones.mobilenet_v2 import MobileNetV2Classifier
from jaxseg.core.errors import JaxsegError
from jaxseg.models import deeplab_v3, deeplab_v3plus
from jaxseg.weights.load import load_weights
from jaxseg.weights.parity import largest_differences
from jaxseg.weights.readers.npz import read_npz

pytestmark = pytest.mark.data
IMAGENET, VOC = "mobilenet_v2_1.0_224_imagenet.npz", "deeplabv3_mnv2_os16_voc.npz"


def shapes(model):
    image = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
    return jax.eval_shape(lambda k, x: model.init(k, x, False), jax.random.key(0), image)


@functools.cache
def segmenter(folder):
    """The model of the VOC file, its variables and its jitted forward pass."""
    model = deeplab_v3.build(num_classes=21, backbone="mobilenet_v2", aspp_rates=(), norm_epsilon=1e-3)
    variables = load_weights(folder / VOC, shapes(model), table="tf_slim_deeplab_v3")
    return variables, jax.jit(lambda v, x: model.apply(v, x, False))


def test_classifier_golden(shared_data):
    folder = shared_data / "weights"
    model = MobileNetV2Classifier()
    variables = load_weights(folder / IMAGENET, shapes(model), table="tf_slim_mobilenet_v2_classifier")
    assert sum(p.size for p in jax.tree.leaves(variables["params"])) == 3_506_153
    golden = read_npz(folder / "golden_mobilenet_v2.npz")
    forward = jax.jit(lambda v, x: model.apply(v, x, False)["logits"])
    images = golden["images"].astype(np.float32)
    for pixels, key in (((images - 128) / 128, "logits"), (images / 127.5 - 1, "logits_div127_5")):
        logits = np.asarray(forward(variables, pixels))
        np.testing.assert_allclose(logits, golden[key], atol=1e-3)
        np.testing.assert_array_equal(logits.argmax(-1), [653, 286])


def test_segmenter_golden(shared_data):
    folder = shared_data / "weights"
    variables, forward = segmenter(folder)
    golden = read_npz(folder / "golden_deeplabv3_voc.npz")
    images = golden["images"].astype(np.float32)
    outputs = forward(variables, (images - 128) / 128)
    np.testing.assert_allclose(outputs["low_logits"], golden["logits"], atol=1e-3)
    np.testing.assert_array_equal(np.argmax(outputs["low_logits"], -1), np.argmax(golden["logits"], -1))
    # align_corners at 513 = 16 * 32 + 1: every 16th pixel is a low-resolution one.
    np.testing.assert_allclose(outputs["logits"][:, ::16, ::16], golden["logits"], atol=1e-3)
    taps = {
        f"MobilenetV2/expanded_conv_{i}" if i else "MobilenetV2/expanded_conv": f"backbone/block{i}" for i in range(17)
    }
    taps |= {"MobilenetV2/Conv": "backbone/stem", "concat_projection": "aspp"}
    for name, mean, std in zip(
        golden["endpoint_names"], golden["endpoint_mean"].T, golden["endpoint_std"].T, strict=True
    ):
        if str(name) in taps:
            tap = outputs[taps[str(name)]]
            np.testing.assert_allclose(np.mean(tap, axis=(1, 2, 3)), mean, atol=1e-4, err_msg=str(name))
            np.testing.assert_allclose(np.std(tap, axis=(1, 2, 3)), std, rtol=1e-3, err_msg=str(name))
    outputs = forward(variables, images / 127.5 - 1)
    np.testing.assert_allclose(outputs["low_logits"], golden["logits_div127_5"], atol=1e-3)


def reference_forward(arrays, x):
    """DeepLab v3 over MobileNetV2 written from the file's names alone: lax convolutions with padding 'SAME', NCHW."""
    x = jnp.transpose(x, (0, 3, 1, 2))

    def conv_norm(x, name, limit, *, stride=1, rate=1):
        depthwise = f"{name}/depthwise_weights" in arrays
        kernel = arrays[f"{name}/depthwise_weights"] if depthwise else arrays[f"{name}/weights"]
        kernel = kernel.transpose(2, 3, 0, 1) if depthwise else kernel.transpose(3, 2, 0, 1)
        groups = x.shape[1] if depthwise else 1
        x = lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "SAME",
            rhs_dilation=(rate, rate),
            feature_group_count=groups,
            precision="highest",
        )
        norm = {
            k: arrays[f"{name}/BatchNorm/{k}"][:, None, None]
            for k in ("gamma", "beta", "moving_mean", "moving_variance")
        }
        x = (x - norm["moving_mean"]) / np.sqrt(norm["moving_variance"] + 1e-3) * norm["gamma"] + norm["beta"]
        return x if limit is None else jnp.clip(x, 0, limit)

    x = conv_norm(x, "MobilenetV2/Conv", 6, stride=2)
    strides = [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    for i, stride in enumerate(strides):
        name, before = f"MobilenetV2/expanded_conv_{i}" if i else "MobilenetV2/expanded_conv", x
        x = conv_norm(x, f"{name}/expand", 6) if i else x
        x = conv_norm(x, f"{name}/depthwise", 6, stride=stride, rate=2 if i > 13 else 1)
        x = conv_norm(x, f"{name}/project", None)
        x = x + before if x.shape == before.shape else x
    pooled = conv_norm(jnp.mean(x, (2, 3), keepdims=True), "image_pooling", np.inf)
    x = jnp.concatenate([jnp.broadcast_to(pooled, (*pooled.shape[:2], *x.shape[2:])), conv_norm(x, "aspp0", np.inf)], 1)
    x = conv_norm(x, "concat_projection", np.inf)
    x = jnp.transpose(x, (0, 2, 3, 1)) @ arrays["logits/semantic/weights"][0, 0] + arrays["logits/semantic/biases"]
    return x


@pytest.mark.parametrize("size", [(97, 150), (64, 47)])
def test_odd_and_even_sizes_against_a_second_forward_pass(shared_data, size):
    folder = shared_data / "weights"
    variables, forward = segmenter(folder)
    image = read_npz(folder / "golden_deeplabv3_voc.npz")["images"][:1, 100 : 100 + size[0], 200 : 200 + size[1]]
    x = jnp.asarray((image.astype(np.float32) - 128) / 128)
    reference = jax.jit(functools.partial(reference_forward, read_npz(folder / VOC)))(x)
    outputs = forward(variables, x)
    np.testing.assert_allclose(outputs["low_logits"], reference, atol=1e-3)
    assert float(jnp.ptp(reference)) > 1
    assert outputs["logits"].shape == (1, *size, 21)


def test_imagenet_backbone_into_deeplab_v3plus(shared_data):
    model = deeplab_v3plus.build(num_classes=11, backbone="mobilenet_v2", separable=True)
    image = jnp.zeros((1, 33, 33, 3))
    variables = jax.jit(lambda k: model.init(k, image, False))(jax.random.key(0))
    path = shared_data / "weights" / IMAGENET
    loaded = load_weights(path, variables, table="tf_slim_mobilenet_v2", scope="backbone")
    arrays = read_npz(path)
    np.testing.assert_array_equal(
        loaded["params"]["backbone"]["conv"]["conv"]["kernel"], arrays["MobilenetV2/Conv/weights"]
    )
    assert (
        loaded["params"]["aspp"]["conv1x1"]["conv"]["kernel"]
        is variables["params"]["aspp"]["conv1x1"]["conv"]["kernel"]
    )
    from_voc = load_weights(
        shared_data / "weights" / VOC, variables, table="tf_slim_deeplab_v3_backbone", scope="backbone"
    )
    assert not np.array_equal(
        from_voc["params"]["backbone"]["block16"]["project"]["conv"]["kernel"],
        loaded["params"]["backbone"]["block16"]["project"]["conv"]["kernel"],
    )


def test_a_file_for_another_network_is_refused(shared_data):
    model = deeplab_v3.build(num_classes=11, backbone="mobilenet_v2", aspp_rates=())
    with pytest.raises(JaxsegError, match=r"2 shapes that differ: params/classifier/bias is \(11,\)"):
        load_weights(shared_data / "weights" / VOC, shapes(model), table="tf_slim_deeplab_v3")
    with pytest.raises(JaxsegError, match="arrays of the file that nothing uses: MobilenetV2/Conv_1"):
        load_weights(shared_data / "weights" / IMAGENET, shapes(model), table="tf_slim_deeplab_v3")


def test_parity_report_finds_the_layer_that_differs():
    ours = {"a": np.ones((1, 2, 2, 3)), "b": np.ones((2, 2)), "c": np.zeros(3)}
    theirs = {"a": np.ones((1, 2, 2, 3)), "b": np.asarray([[1, 1], [1, 1.5]]), "d": np.zeros(1)}
    assert largest_differences(ours, theirs) == {"a": 0.0, "b": 0.5}
    with pytest.raises(JaxsegError, match=r"b: .*\(2, 2\).*\(4,\)"):
        largest_differences(ours, {"b": np.ones(4)})
