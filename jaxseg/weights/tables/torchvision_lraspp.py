"""torchvision's LR-ASPP over MobileNetV3-large into `lraspp`, built with no further options."""

from collections.abc import Sequence

from jaxseg.weights.rules import Rule, Source, below, by_rules, conv_norm
from jaxseg.weights.tables.torchvision_mobilenet_v3 import rules
from jaxseg.weights.tables.torchvision_resnet import IMAGE

IGNORED: dict[str, str] = {}
EXPECTS = {
    "alignment": "half_pixel",
    "low_level": "c2",
    "norm.epsilon": 1e-5,
    "backbone.output_stride": 16,
    "backbone.padding": "torch",
    "backbone.norm.epsilon": 1e-3,
    **IMAGE,
}
HEAD = [
    *conv_norm("conv", "classifier.cbr.0", "classifier.cbr.1"),
    Rule("gate", "classifier.scale.1"),
    Rule("(low|high)_classifier", r"classifier.\1_classifier"),
]


def TABLE(names: Sequence[str]) -> dict[str, Source]:
    """The sources of the network's variables."""
    return by_rules([*below("backbone/", "backbone.", rules(names, "")), *HEAD])(names)
