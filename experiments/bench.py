"""The networks whose speed is compared with PyTorch's: sizes, batches and options as the other side has them.

Command: python -m jaxseg.main --mode=bench --config=experiments/bench.py:deeplab_v3_resnet50 --against=torchvision
         python -m jaxseg.main --mode=bench --config=experiments/bench.py:deeplab_v3plus_mobilenet_v2 --against=smp
         python -m jaxseg.main --mode=bench --config=experiments/bench.py:unet_resnet34 --against=smp
         python -m jaxseg.main --mode=bench --config=experiments/bench.py:tiramisu56 --against=torch
         python -m jaxseg.main --mode=bench --config=experiments/bench.py:deeplab_v3plus_xception65 --against=smp
All of them: launch/bench.sh; results: experiments/results. A row's size can be given: unet_resnet34@16x512.
21 classes, cross-entropy over full-size logits, SGD with
momentum. DeepLab v3 (arXiv 1706.05587) is torchvision's; DeepLab v3+ (1802.02611) and U-Net's decoder (1505.04597) are
those of segmentation_models_pytorch; no package has FC-DenseNet (1611.09326): its twin is jaxseg.tools.bench's.
"""

from ml_collections import ConfigDict

from experiments.defaults import INCEPTION, defaults

SMP_DEEPLAB = {
    "name": "deeplab_v3plus",
    "aspp_rates": (12, 24, 36),
    "separable": True,
    "depthwise_norm": False,
    "encoder_convolutions": 1,
    "decoder_convolutions": 1,
    "dropout_rate": 0.5,
}
MOBILENET = {"padding": "torch", "norm_epsilon": 1e-5, "last_convolution": True}
MODELS = {
    "deeplab_v3_resnet50": {
        "name": "deeplab_v3",
        "backbone": "resnet50",
        "output_stride": 8,
        "head_convolution": True,
        "alignment": "half_pixel",
        "dropout_rate": 0.5,
    },
    "deeplab_v3plus_mobilenet_v2": SMP_DEEPLAB | {"backbone": "mobilenet_v2", "backbone_options": MOBILENET},
    "unet_resnet34": {"name": "unet_encoder", "backbone": "resnet34"},
    "tiramisu56": {"name": "tiramisu", "depth": 56},
    "deeplab_v3plus_xception65": SMP_DEEPLAB | {"backbone": "xception65"},
}
PARTS = {"deeplab_v3plus_xception65": ("inference",)}
# Images and side in pixels where the row's name does not say.
SIZES = {
    "deeplab_v3_resnet50": (2, 256),
    "deeplab_v3plus_mobilenet_v2": (4, 256),
    "unet_resnet34": (4, 256),
    "tiramisu56": (3, 224),
    "deeplab_v3plus_xception65": (1, 513),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; the argument is the row: a name of `MODELS`, alone or with a size, `unet_resnet34@16x512`."""
    name, at, size = (arg or "deeplab_v3_resnet50").partition("@")
    numbers = size.split("x")
    if name not in MODELS or (at and (len(numbers) != 2 or not all(n.isdigit() for n in numbers))):
        raise ValueError(f"experiments/bench.py takes one of {', '.join(MODELS)}, with @BATCHxSIDE or not; not {arg!r}")
    batch_size, side = (int(n) for n in numbers) if at else SIZES[name]
    config = defaults()
    config.model = ConfigDict(MODELS[name] | INCEPTION)
    config.data.update({"name": "shapes", "crop_size_px": (side, side)})
    config.train.batch_size = batch_size
    config.bench.parts = PARTS.get(name, ("train", "inference"))
    config.evaluate.batch_size = batch_size
    return config
