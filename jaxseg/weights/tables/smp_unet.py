"""segmentation_models_pytorch's Unet over ResNet into `unet_encoder`, for example with `backbone="resnet34"`."""

from collections.abc import Iterable

from jaxseg.weights.rules import Rule, below, by_rules, conv_norm, minus
from jaxseg.weights.tables.torchvision_resnet import IMAGE
from jaxseg.weights.tables.torchvision_resnet import RULES as RESNET

IGNORED = {"classification_head.": "the classifier of whole images, where the file has one"}
ENCODER = {
    "backbone.stem": "conv7",
    "backbone.stem_pool": "floor",
    "backbone.pooled_shortcut": False,
    "backbone.multi_grid": (),
    "backbone.padding": "torch",
    "backbone.stride_in_1x1": False,
    "backbone.norm.epsilon": 1e-5,
    **IMAGE,
}
EXPECTS = {"norm.epsilon": 1e-5, **ENCODER}


def rules(encoder: Iterable[Rule]) -> list[Rule]:
    """The network's rules from those of its encoder."""
    block = "decoder.blocks.{1}.conv{2}"
    return [
        *below("backbone/", "encoder.", encoder),
        *conv_norm(r"decoder(\d)_conv(\d)", minus(1, 1, block + ".0"), minus(1, 1, block + ".1")),
        Rule("classifier", "segmentation_head.0"),
    ]


TABLE = by_rules(rules(RESNET))
