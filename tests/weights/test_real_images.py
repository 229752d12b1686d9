"""Loaded weights on real photographs: what they recognise, in figures, with thresholds just under them.

ImageNet photos: 12 of the validation set, taken as 3 each of partridge, keeshond, Persian cat and capuchin. The labels
of 9 of the 12 are inferred, not read from a published list, so the figures hold for these labels and are no accuracy on
ImageNet. MobileNetV2 (TF-slim) has 8 of 12 right, 10 of 12 among its first five; MobileNetV1 0.25 (a PyTorch .pth) 9
and 10.
VOC photos with LabelMe's masks: 3; DeepLab v3 agrees on 86.3 % of the pixels, mIoU of the 7 classes there 49.1 %.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxseg.backbones.mobilenet_v2 import MobileNetV2Classifier
from jaxseg.core.normalize import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, INCEPTION_STD, normalize
from jaxseg.models import deeplab_v3
from jaxseg.ops.conv import conv
from jaxseg.weights.load import load_weights
from jaxseg.weights.readers import read_arrays
from jaxseg.weights.rules import convolution

pytestmark = pytest.mark.data

# WordNet order, 0..999; the numbers are the photos' places in the validation set.
PARTRIDGE, KEESHOND, PERSIAN, CAPUCHIN = 86, 261, 283, 378
LABELS = {
    PARTRIDGE: (1563, 3676, 19750),
    KEESHOND: (1698, 2749, 16303),
    PERSIAN: (4894, 10218, 15372),
    CAPUCHIN: (4458, 16946, 21490),
}


@pytest.fixture(scope="module")
def photos(shared_data):
    """uint8 `[12, 224, 224, 3]`: shorter side 256, the centre; and their labels."""
    images, labels = [], []
    for label, numbers in LABELS.items():
        for number in numbers:
            image = Image.open(shared_data / "ilsvrc_sample" / f"ILSVRC2012_val_{number:08}.JPEG").convert("RGB")
            scale = 256 / min(image.size)
            image = image.resize([round(n * scale) for n in image.size], Image.Resampling.BILINEAR)
            left, top = ((n - 224) // 2 for n in image.size)
            images.append(np.asarray(image.crop((left, top, left + 224, top + 224))))
            labels.append(label)
    return np.stack(images), np.asarray(labels)


def right(logits, labels, count):
    """How many labels are among the first `count`."""
    return int(np.sum(np.argsort(-np.asarray(logits), axis=-1)[:, :count] == labels[:, None]))


def test_mobilenet_v2_classifies(shared_data, photos):
    images, labels = photos
    model = MobileNetV2Classifier()
    shapes = jax.eval_shape(lambda k: model.init(k, jnp.zeros((1, 65, 65, 3)), False), jax.random.key(0))
    path = shared_data / "weights" / "mobilenet_v2_1.0_224_imagenet.npz"
    variables = load_weights(path, shapes, table="tf_slim_mobilenet_v2_classifier", network=model)
    pixels = normalize(images, mean=INCEPTION_MEAN, std=INCEPTION_STD)
    # Class 0 is the background.
    logits = jax.jit(lambda v, x: model.apply(v, x, False)["logits"])(variables, pixels)[:, 1:]
    assert right(logits, labels, 1) >= 8
    assert right(logits, labels, 5) >= 10


def mobilenet_v1(arrays, x):
    """The network of the .pth, from its names alone: symmetric padding, BatchNorm's epsilon 1e-5, ReLU."""

    def block(x, name, norm, *, stride, groups=1):
        pad = arrays[f"{name}.weight"].shape[-1] // 2
        kernel = jnp.asarray(convolution(arrays[f"{name}.weight"]))
        x = conv(x, kernel, strides=stride, padding=((pad, pad), (pad, pad)), groups=groups)
        scale = arrays[f"{norm}.weight"] / np.sqrt(arrays[f"{norm}.running_var"] + np.float32(1e-5))
        x = (x - arrays[f"{norm}.running_mean"]) * scale + arrays[f"{norm}.bias"]
        return jnp.maximum(x, 0)

    x = block(x, "stage1.0.0", "stage1.0.1", stride=2)
    strided = {"stage1.2", "stage1.4", "stage2.0", "stage3.0"}
    for name in [f"stage1.{i}" for i in range(1, 6)] + [f"stage2.{i}" for i in range(6)] + ["stage3.0", "stage3.1"]:
        x = block(x, f"{name}.0", f"{name}.1", stride=1 + (name in strided), groups=x.shape[-1])
        x = block(x, f"{name}.3", f"{name}.4", stride=1)
    return jnp.mean(x, axis=(1, 2)) @ arrays["fc.weight"].T + arrays["fc.bias"]


def test_a_pytorch_file_classifies(shared_data, photos):
    images, labels = photos
    arrays = read_arrays(shared_data / "weights" / "mobilenet_v1_0.25_imagenet.pth.tar")
    logits = jax.jit(lambda x: mobilenet_v1(arrays, x))(normalize(images, mean=IMAGENET_MEAN, std=IMAGENET_STD))
    assert right(logits, labels, 1) >= 9
    assert right(logits, labels, 5) >= 10


def test_deeplab_segments_voc_photos(shared_data):
    folder = shared_data / "annotations" / "labelme" / "semantic_segmentation" / "data_dataset_voc"
    model = deeplab_v3.build(num_classes=21, backbone="mobilenet_v2", aspp_rates=(), norm_epsilon=1e-3)
    shapes = jax.eval_shape(lambda k: model.init(k, jnp.zeros((1, 65, 65, 3)), False), jax.random.key(0))
    path = shared_data / "weights" / "deeplabv3_mnv2_os16_voc.npz"
    variables = load_weights(path, shapes, table="tf_slim_deeplab_v3", network=model)
    forward = jax.jit(lambda v, x: model.apply(v, x, False)["logits"].argmax(-1))
    counts = np.zeros((21, 21), np.int64)
    for file in sorted((folder / "JPEGImages").glob("*.jpg")):
        image = np.asarray(Image.open(file).convert("RGB"))
        h, w = image.shape[:2]
        pixels = np.zeros((1, 513, 513, 3), np.float32)
        pixels[0, :h, :w] = normalize(image, mean=INCEPTION_MEAN, std=INCEPTION_STD)
        predicted = np.asarray(forward(variables, pixels))[0, :h, :w]
        label = np.asarray(Image.open(folder / "SegmentationClass" / f"{file.stem}.png")).astype(np.int64)
        valid = label < 255
        counts += np.bincount(label[valid] * 21 + predicted[valid], minlength=441).reshape(21, 21)
    hits, there = np.diag(counts), counts.sum(1) > 0
    iou = hits[there] / (counts.sum(0) + counts.sum(1) - hits)[there]
    assert there.sum() == 7
    assert hits.sum() / counts.sum() > 0.86
    assert iou.mean() > 0.485
