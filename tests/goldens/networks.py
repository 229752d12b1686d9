"""Tiny networks whose logits PyTorch computed; weights and images follow from names by a rule, so none are stored.

`logits.npz` holds a sub-sample of PyTorch's logits of each. To write it anew, where PyTorch, torchvision and
segmentation_models_pytorch are installed: `JAXSEG_WRITE_GOLDENS=1 python -m pytest
tests/references/test_golden_references.py`.
"""

import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.core.names import resolve

FILE = pathlib.Path(__file__).parent / "logits.npz"
SIZE, CLASSES = (37, 45), 4
RESNET = {"backbone": "resnet18", "backbone_options": {"width": 8}}
EAGER = {"backbone": "resnet18", "backbone_options": {"width": 8, "dilate_first_unit": True}}
VGG = {"backbone_options": {"width": 8}, "fc_channels": 16}
MOBILE = {"padding": "torch", "norm_epsilon": 1e-5, "last_convolution": True}
ENCODER, DECODER = ((8, 8), (12, 12), (16, 16, 16)), ((16, 16, 12), (12, 8), (8,))
# Model, options, and the image's size where it is not SIZE.
NETWORKS: dict[str, tuple] = {
    "fcn 8s": ("fcn", {"backbone_options": {"width": 8}, "fc_channels": 32, "deconvolution": "dense"}),
    "fcn alexnet": (
        "fcn",
        {"variant": "32s", "backbone": "alexnet", "backbone_options": {"width": 12}}
        | {"fc_channels": 24, "deconvolution": "dense"},
    ),
    "fcn_resnet": ("fcn_resnet", EAGER),
    "unet": ("unet", {"width": 4}),
    "unet same": ("unet", {"width": 4, "padding": "same", "batch_norm": True}),
    "unet_encoder": ("unet_encoder", {"backbone": "mobilenet_v2", "backbone_options": MOBILE}),
    "segnet": ("segnet", {"encoder": ENCODER, "decoder": DECODER}),
    "segnet_basic": ("segnet_basic", {"width": 8}),
    "tiramisu": ("tiramisu", {"layers": (1, 2, 2, 2, 1), "growth_rate": 8, "first_channels": 8}),
    "dilation": ("dilation", VGG | {"context_layers": 10, "upsampling": "deconvolution"}, (40, 48)),
    "deeplab_v1": ("deeplab_v1", VGG | {"multi_scale": True, "scale_channels": 6}),
    "deeplab_v2": ("deeplab_v2", VGG | {"backbone": "vgg16"}),
    "deeplab_v3": (
        "deeplab_v3",
        EAGER | {"output_stride": 8, "head_convolution": True, "aspp_channels": 256, "alignment": "half_pixel"},
    ),
    "deeplab_v3plus": (
        "deeplab_v3plus",
        {"backbone": "mobilenet_v2", "backbone_options": MOBILE | {"dilate_first_unit": True}, "separable": True}
        | {"aspp_rates": (12, 24, 36), "depthwise_norm": False, "encoder_convolutions": 1, "decoder_convolutions": 1},
        (32, 48),
    ),
    "lraspp": ("lraspp", {}),
    "pspnet": ("pspnet", RESNET | {"pyramid_channels": 6, "fusion_channels": 12}),
    "gcn": ("gcn", RESNET | {"kernel_size": 7}),
    "refinenet": (
        "refinenet",
        RESNET | {"features": (8, 8, 8, 16), "crp_blocks": 2, "output_units": (3, 1, 1, 1)},
    ),
    "upernet": ("upernet", RESNET | {"pyramid_channels": 8, "fpn_channels": 8}),
}
"""Name of a golden -> what is built."""


def module_of(name):
    """The network."""
    model, options, *_ = NETWORKS[name]
    return resolve("models", model)(num_classes=CLASSES, **options)


def image_of(name):
    """float32 `[1, h, w, 3]`. RandomState's streams are frozen by NumPy's policy."""
    size = NETWORKS[name][2] if len(NETWORKS[name]) > 2 else SIZE
    scale = 50 if "alexnet" in name else 1
    return (scale * np.random.RandomState(1).standard_normal((1, *size, 3))).astype(np.float32)


def variables_of(module):
    """Each variable is drawn by its own name: kernels N(0, 2 / fan-in), statistics and the rest around their start."""
    shapes = jax.eval_shape(lambda k: module.init(k, jnp.zeros((1, 65, 65, 3)), False), jax.random.key(0))

    def draw(path, leaf):
        names = [key.key for key in path]
        stream = np.random.RandomState(zlib.crc32("/".join(names).encode()))
        if names[-1] == "kernel":
            value = stream.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        elif names[-1] in ("scale", "var"):
            value = stream.uniform(0.5, 1.5, leaf.shape)
        else:
            value = stream.uniform(-0.3, 0.3, leaf.shape)
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def sample(logits):
    """Every third row and every fourth column of `[1, h, w, c]`."""
    return np.asarray(logits)[:, ::3, ::4]
