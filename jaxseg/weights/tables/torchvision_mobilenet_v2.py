"""torchvision's MobileNetV2 into the backbone `mobilenet_v2` with `padding="torch"`, `norm_epsilon=1e-5`."""

import re

from jaxseg.weights.rules import Rule, Target, by_rules, conv_norm
from jaxseg.weights.tables.torchvision_resnet import IMAGE

EXPECTS = {"padding": "torch", "norm.epsilon": 1e-5, **IMAGE}
IGNORED = {
    "features.18.": "the classifier's last 1x1 convolution, where the backbone ends before it",
    "classifier.": "the ImageNet classifier",
}


def _part(place: int, last: str) -> Target:
    """The name of a block's part; the first block has no expansion, and its parts stand one place earlier."""

    def target(match: re.Match[str]) -> str:
        block = int(match[1])
        name = f"features.{block + 1}.conv.{place - (block == 0)}"
        return f"{name}.{last}" if last else name

    return target


RULES: list[Rule] = [
    *conv_norm("conv", "features.0.0", "features.0.1"),
    *conv_norm("conv_last", "features.18.0", "features.18.1"),
    *conv_norm(r"block(\d+)/expand", _part(0, "0"), _part(0, "1")),
    *conv_norm(r"block(\d+)/depthwise", _part(1, "0"), _part(1, "1")),
    *conv_norm(r"block(\d+)/project", _part(2, ""), _part(3, "")),
]
TABLE = by_rules(RULES)
