"""segmentation_models_pytorch's PSPNet over MobileNetV2 into `pspnet`.

Options: those of smp_pspnet with `backbone="mobilenet_v2"`, `pyramid_channels=8` and `backbone_options={"padding":
"torch", "norm_epsilon": 1e-5, "stop_at_output_stride": True}`.
"""

from jaxseg.weights.rules import by_rules
from jaxseg.weights.tables.smp_pspnet import HEAD, rules
from jaxseg.weights.tables.smp_unet import IGNORED as CLASSIFIER
from jaxseg.weights.tables.torchvision_mobilenet_v2 import RULES as MOBILENET_V2
from jaxseg.weights.tables.torchvision_resnet import IMAGE

EXPECTS = {**HEAD, "backbone.padding": "torch", "backbone.norm.epsilon": 1e-5, **IMAGE}
IGNORED = {f"encoder.features.{i}.": "a unit beyond stride 8, which nothing uses" for i in range(7, 19)} | CLASSIFIER

TABLE = by_rules(rules(MOBILENET_V2))
