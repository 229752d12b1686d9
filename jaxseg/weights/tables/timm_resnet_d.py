"""timm's ResNet-D (resnet18d to resnet152d) into the backbones `resnet<depth>`.

Options: `stem="deep"`, `stem_channels=(32, 32, 64)`, `pooled_shortcut=True`.
"""

from jaxseg.weights.rules import by_rules, conv_norm
from jaxseg.weights.tables.torchvision_resnet import IGNORED, TRUNK, units

EXPECTS = {"stem": "deep", "stem_pool": "floor", "pooled_shortcut": True, **TRUNK}
__all__ = ["EXPECTS", "IGNORED", "TABLE"]

TABLE = by_rules(
    [
        *conv_norm("stem1", "conv1.0", "conv1.1"),
        *conv_norm("stem2", "conv1.3", "conv1.4"),
        *conv_norm("stem3", "conv1.6", "bn1"),
        *units(1),
    ]
)
