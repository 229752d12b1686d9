"""Which networks of ours torchvision, segmentation_models_pytorch and plain PyTorch have: name -> constructor.

A constructor takes the options of `config.model`, the number of classes and the image's (height, width). Options that
the other side does not have are left out; the bench compares the numbers of parameters and says where they differ.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from jaxseg.core.errors import JaxsegError
from jaxseg.core.names import close_matches
from jaxseg.models.tiramisu import PUBLISHED

Options = Mapping[str, Any]
Size = tuple[int, int]
Constructor = Callable[[Options, int, Size], Any]

RESNETS = {f"resnet{depth}": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)}
TORCHVISION_BACKBONES = {"resnet50": "resnet50", "resnet101": "resnet101"}
ENCODERS = RESNETS | {"mobilenet_v2": "mobilenet_v2"} | {f"xception{d}": f"tu-xception{d}" for d in (41, 65, 71)}


def backbone_of(options: Options, known: Mapping[str, str], *, default: str) -> str:
    """The other side's name of the backbone.

    Raises:
      JaxsegError: it has none like it.
    """
    name = options.get("backbone", default)
    if name not in known:
        raise JaxsegError(
            f"--against: no counterpart of config.model.backbone = {name!r}. {close_matches(name, known)}"
        )
    return known[name]


def check_stride(options: Options, *, ours: int, theirs: int) -> None:
    """Raises JaxsegError where the config's output stride is not the only one that the other side has."""
    stride = options.get("output_stride", ours)
    if stride != theirs:
        raise JaxsegError(
            f"--against: config.model.output_stride = {stride}, but the peer has {theirs} alone. Set it to {theirs}."
        )


def check_divisible(size: Size, by: int) -> None:
    """Raises JaxsegError where the other side would refuse the image's size."""
    if any(side % by for side in size):
        raise JaxsegError(f"--against=smp takes sizes that {by} divides; config.data.crop_size_px = {size} is none.")


def torchvision_network(name: str, options: Options, classes: int, **more: Any) -> Any:
    """A network of torchvision.models.segmentation without weights."""
    models = importlib.import_module("torchvision").models.segmentation
    return getattr(models, name)(weights=None, weights_backbone=None, num_classes=classes, **more)


def torchvision_deeplab_v3(options: Options, classes: int, size: Size) -> Any:
    """deeplabv3_resnet50 or 101."""
    check_stride(options, ours=16, theirs=8)
    backbone = backbone_of(options, TORCHVISION_BACKBONES, default="resnet50")
    return torchvision_network(f"deeplabv3_{backbone}", options, classes, aux_loss=bool(options.get("aux_tap")))


def torchvision_fcn_resnet(options: Options, classes: int, size: Size) -> Any:
    """fcn_resnet50 or 101."""
    check_stride(options, ours=8, theirs=8)
    backbone = backbone_of(options, TORCHVISION_BACKBONES, default="resnet50")
    return torchvision_network(f"fcn_{backbone}", options, classes, aux_loss=bool(options.get("aux_tap")))


def torchvision_lraspp(options: Options, classes: int, size: Size) -> Any:
    """lraspp_mobilenet_v3_large."""
    check_stride(options, ours=16, theirs=16)
    return torchvision_network("lraspp_mobilenet_v3_large", options, classes)


def smp_network(name: str, options: Options, classes: int, *, default: str, **more: Any) -> Any:
    """A network of segmentation_models_pytorch without weights."""
    smp = importlib.import_module("segmentation_models_pytorch")
    encoder = backbone_of(options, ENCODERS, default=default)
    return getattr(smp, name)(encoder, encoder_weights=None, classes=classes, **more)


def smp_deeplab(name: str, options: Options, classes: int) -> Any:
    """DeepLabV3 or DeepLabV3Plus with the config's output stride and atrous rates."""
    stride = options.get("output_stride", 16)
    rates = tuple(rate * 16 // stride for rate in options.get("aspp_rates", (6, 12, 18)))
    more = {"encoder_output_stride": stride, "decoder_atrous_rates": rates}
    return smp_network(name, options, classes, default="resnet50", **more)


def smp_deeplab_v3(options: Options, classes: int, size: Size) -> Any:
    """DeepLabV3."""
    check_divisible(size, options.get("output_stride", 16))
    return smp_deeplab("DeepLabV3", options, classes)


def smp_deeplab_v3plus(options: Options, classes: int, size: Size) -> Any:
    """DeepLabV3Plus; its two up-samplings get sizes instead of factors where the output stride does not divide."""
    network = smp_deeplab("DeepLabV3Plus", options, classes)
    if any(side % options.get("output_stride", 16) for side in size):
        upsample = importlib.import_module("torch").nn.Upsample
        quarter = tuple(-(-side // 4) for side in size)
        network.requires_divisible_input_shape = False
        network.decoder.up = upsample(size=quarter, mode="bilinear", align_corners=True)
        network.segmentation_head[1] = upsample(size=size, mode="bilinear", align_corners=True)
    return network


def smp_unet(options: Options, classes: int, size: Size) -> Any:
    """Unet."""
    channels = tuple(options.get("decoder_channels", (256, 128, 64, 32, 16)))
    return smp_network("Unet", options, classes, default="resnet34", decoder_channels=channels)


def smp_pspnet(options: Options, classes: int, size: Size) -> Any:
    """PSPNet, whose encoder ends at stride 8."""
    check_divisible(size, 8)
    return smp_network("PSPNet", options, classes, default="resnet50")


def smp_upernet(options: Options, classes: int, size: Size) -> Any:
    """UPerNet."""
    check_divisible(size, 32)
    return smp_network("UPerNet", options, classes, default="resnet50")


def torch_tiramisu(options: Options, classes: int, size: Size) -> Any:
    """FC-DenseNet in plain PyTorch: no package has it."""
    from jaxseg.tools.bench.tiramisu_twin import build

    layers, growth = PUBLISHED[options.get("depth", 103)]
    return build(
        classes,
        layers=tuple(options.get("layers", ())) or layers,
        growth_rate=options.get("growth_rate", 0) or growth,
        first_channels=options.get("first_channels", 48),
        dropout_rate=options.get("dropout_rate", 0.2),
    )


NETWORKS: dict[str, dict[str, Constructor]] = {
    "torchvision": {
        "deeplab_v3": torchvision_deeplab_v3,
        "fcn_resnet": torchvision_fcn_resnet,
        "lraspp": torchvision_lraspp,
    },
    "smp": {
        "deeplab_v3": smp_deeplab_v3,
        "deeplab_v3plus": smp_deeplab_v3plus,
        "unet_encoder": smp_unet,
        "pspnet": smp_pspnet,
        "upernet": smp_upernet,
    },
    "torch": {"tiramisu": torch_tiramisu},
}
