"""segmentation_models_pytorch's DeepLabV3Plus over MobileNetV2 into `deeplab_v3plus`.

Options: those of smp_deeplab_v3plus with `backbone="mobilenet_v2"` and `backbone_options={"padding": "torch",
"norm_epsilon": 1e-5, "last_convolution": True, "dilate_first_unit": True}`.
"""

from jaxseg.weights.rules import by_rules
from jaxseg.weights.tables.smp_deeplab_v3plus import HEAD, rules
from jaxseg.weights.tables.smp_unet import IGNORED
from jaxseg.weights.tables.smp_unet_mobilenet_v2 import ENCODER
from jaxseg.weights.tables.torchvision_mobilenet_v2 import RULES as MOBILENET_V2

EXPECTS = {**HEAD, **ENCODER}
__all__ = ["EXPECTS", "IGNORED", "TABLE"]

TABLE = by_rules(rules(MOBILENET_V2))
