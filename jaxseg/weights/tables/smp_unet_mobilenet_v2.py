"""segmentation_models_pytorch's Unet over MobileNetV2 into `unet_encoder`.

Options: `backbone="mobilenet_v2"`, `backbone_options={"padding": "torch", "norm_epsilon": 1e-5, "last_convolution":
True}`.
"""

from jaxseg.weights.rules import by_rules
from jaxseg.weights.tables.smp_unet import IGNORED, rules
from jaxseg.weights.tables.torchvision_mobilenet_v2 import RULES as MOBILENET_V2
from jaxseg.weights.tables.torchvision_resnet import IMAGE

ENCODER = {
    "backbone.padding": "torch",
    "backbone.last_convolution": True,
    "backbone.norm.epsilon": 1e-5,
    **IMAGE,
}
EXPECTS = {"norm.epsilon": 1e-5, **ENCODER}
__all__ = ["EXPECTS", "IGNORED", "TABLE"]

TABLE = by_rules(rules(MOBILENET_V2))
