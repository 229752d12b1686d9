"""segmentation_models_pytorch's DeepLabV3 over ResNet into `deeplab_v3`.

Options: `backbone`, `output_stride=8` (or 16 with `aspp_rates=(12, 24, 36)`), `head_convolution=True`,
`dropout_rate=0.5` and `backbone_options={"dilate_first_unit": True}`.
"""

from jaxseg.weights.rules import Rule, below, by_rules, conv_norm
from jaxseg.weights.tables.smp_unet import ENCODER, IGNORED
from jaxseg.weights.tables.torchvision_deeplab_v3 import aspp
from jaxseg.weights.tables.torchvision_resnet import RULES as RESNET

EXPECTS = {
    "alignment": "align_corners",
    "backbone.dilate_first_unit": True,
    "aspp.rates": (12, 24, 36),
    "aspp.norm.epsilon": 1e-5,
    **ENCODER,
}
__all__ = ["EXPECTS", "IGNORED", "TABLE"]

TABLE = by_rules(
    [
        *below("backbone/", "encoder.", RESNET),
        *below("aspp/", "decoder.aspp.", aspp("convs", "project", "convs.4")),
        *conv_norm("head", "decoder.conv", "decoder.bn"),
        Rule("classifier", "segmentation_head.0"),
    ]
)
