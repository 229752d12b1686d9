"""segmentation_models_pytorch's DeepLabV3Plus over ResNet into `deeplab_v3plus`.

Options: `backbone`, `aspp_rates=(12, 24, 36)` (at output stride 8 `(6, 12, 18)`), `separable=True`,
`depthwise_norm=False`, `encoder_convolutions=1`, `decoder_convolutions=1`, `dropout_rate=0.5` and
`backbone_options={"dilate_first_unit": True}`.
"""

from collections.abc import Iterable

from jaxseg.weights.rules import Rule, below, by_rules, conv_norm
from jaxseg.weights.tables.smp_unet import ENCODER, IGNORED
from jaxseg.weights.tables.torchvision_deeplab_v3 import aspp
from jaxseg.weights.tables.torchvision_resnet import RULES as RESNET

HEAD = {
    "alignment": "align_corners",
    "backbone.dilate_first_unit": True,
    "aspp.rates": (12, 24, 36),
    "aspp.separable": True,
    "aspp.depthwise_norm": False,
    "aspp.norm.epsilon": 1e-5,
    "decoder.separable": True,
    "decoder.depthwise_norm": False,
    "decoder.before": 1,
    "decoder.after": 1,
    "decoder.norm.epsilon": 1e-5,
}
EXPECTS = {**HEAD, **ENCODER}
__all__ = ["EXPECTS", "IGNORED", "TABLE"]


def _separable(ours: str, conv: str, norm: str) -> list[Rule]:
    """Depthwise and pointwise convolution, and the latter's batch norm."""
    return [Rule(f"{ours}/depthwise", f"{conv}.0"), *conv_norm(f"{ours}/pointwise", f"{conv}.1", norm)]


def rules(encoder: Iterable[Rule]) -> list[Rule]:
    """The network's rules from those of its encoder."""
    return [
        *below("backbone/", "encoder.", encoder),
        *_separable(r"aspp/atrous(\d)", r"decoder.aspp.0.convs.\1.0", r"decoder.aspp.0.convs.\1.1"),
        *below("aspp/", "decoder.aspp.0.", aspp("convs", "project", "convs.4")),
        *_separable("decoder/encoder_conv1", "decoder.aspp.1", "decoder.aspp.2"),
        *conv_norm("decoder/low_level", "decoder.block1.0", "decoder.block1.1"),
        *_separable("decoder/conv1", "decoder.block2.0", "decoder.block2.1"),
        Rule("classifier", "segmentation_head.0"),
    ]


TABLE = by_rules(rules(RESNET))
