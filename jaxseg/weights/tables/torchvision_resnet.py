"""torchvision's and timm's ResNet-18 to 152 with the 7x7 stem into the backbones `resnet<depth>`.

For timm's ResNet-D see timm_resnet_d.
"""

from jaxseg.weights.rules import Rule, Target, by_rules, conv_norm, minus

IMAGE = {"image_mean": (123.675, 116.28, 103.53), "image_std": (58.395, 57.12, 57.375)}
TRUNK = {"padding": "torch", "stride_in_1x1": False, "norm.epsilon": 1e-5, **IMAGE}
EXPECTS = {"stem": "conv7", "pooled_shortcut": False, **TRUNK}
IGNORED = {"fc.": "the ImageNet classifier"}

UNIT = r"stage(\d)_unit(\d+)"


def _unit(conv: str, norm: str) -> tuple[Target, Target]:
    """The names of a unit's convolution and batch norm; torchvision counts units from 0."""
    return minus(2, 1, "layer{1}.{2}." + conv), minus(2, 1, "layer{1}.{2}." + norm)


def units(first: int = 0) -> list[Rule]:
    """The four stages; `first` is the place of the convolution in a shortcut."""
    return [
        *conv_norm(UNIT + "/shortcut", *_unit(f"downsample.{first}", f"downsample.{first + 1}")),
        *conv_norm(UNIT + r"/conv(\d)", *_unit("conv{3}", "bn{3}")),
    ]


RULES = [*conv_norm("stem", "conv1", "bn1"), *units()]
TABLE = by_rules(RULES)
