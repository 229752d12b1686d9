"""torchvision's FCN over ResNet into `fcn_resnet`.

Options: `backbone="resnet50"` or 101, and `aux_tap="stage3"` for the auxiliary head, which the published files have.
"""

from jaxseg.weights.rules import Rule, below, by_rules, conv_norm
from jaxseg.weights.tables.torchvision_deeplab_v3 import IGNORED, auxiliary
from jaxseg.weights.tables.torchvision_resnet import IMAGE
from jaxseg.weights.tables.torchvision_resnet import RULES as BACKBONE

EXPECTS = {
    "backbone.output_stride": 8,
    "backbone.multi_grid": (),
    "backbone.dilate_first_unit": False,
    "backbone.padding": "torch",
    "backbone.stride_in_1x1": False,
    "backbone.norm.epsilon": 1e-5,
    "head.alignment": "half_pixel",
    "head.norm.epsilon": 1e-5,
    **IMAGE,
}
__all__ = ["EXPECTS", "IGNORED", "TABLE"]

TABLE = by_rules(
    [
        *below("backbone/", "backbone.", BACKBONE),
        *conv_norm("head/conv", "classifier.0", "classifier.1"),
        Rule("head/classifier", "classifier.4"),
        *auxiliary("aux_classifier"),
    ]
)
