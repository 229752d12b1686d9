"""segmentation_models_pytorch's UPerNet over MobileNetV2 into `upernet`.

Options: those of smp_upernet with `backbone="mobilenet_v2"` and `backbone_options={"padding": "torch", "norm_epsilon":
1e-5, "last_convolution": True}`.
"""

from jaxseg.weights.rules import by_rules
from jaxseg.weights.tables.smp_unet import IGNORED
from jaxseg.weights.tables.smp_unet_mobilenet_v2 import ENCODER
from jaxseg.weights.tables.smp_upernet import HEAD, rules
from jaxseg.weights.tables.torchvision_mobilenet_v2 import RULES as MOBILENET_V2

EXPECTS = {**HEAD, **ENCODER}
__all__ = ["EXPECTS", "IGNORED", "TABLE"]

TABLE = by_rules(rules(MOBILENET_V2))
