"""torchvision's DeepLab v3 over MobileNetV3-large into `deeplab_v3`.

Options: `backbone="mobilenet_v3_large"`, `output_stride=16`, `aspp_rates=(12, 24, 36)`, `head_convolution=True`,
`alignment="half_pixel"`, and `aux_tap="c2"`, `aux_channels=10` for the auxiliary head, which the published file has.
"""

from collections.abc import Sequence

from jaxseg.weights.rules import Source, below, by_rules
from jaxseg.weights.tables.torchvision_deeplab_v3 import HEAD, IGNORED, IMAGE
from jaxseg.weights.tables.torchvision_mobilenet_v3 import rules

EXPECTS = {
    "alignment": "half_pixel",
    "backbone.output_stride": 16,
    "backbone.padding": "torch",
    "backbone.norm.epsilon": 1e-3,
    "aspp.rates": (12, 24, 36),
    "aspp.norm.epsilon": 1e-5,
    **IMAGE,
}
__all__ = ["EXPECTS", "IGNORED", "TABLE"]


def TABLE(names: Sequence[str]) -> dict[str, Source]:
    """The sources of the network's variables."""
    return by_rules([*below("backbone/", "backbone.", rules(names, "")), *HEAD])(names)
