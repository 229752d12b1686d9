"""torchvision's MobileNetV3 large and small into the backbones `mobilenet_v3_large` and `mobilenet_v3_small`."""

import re
from collections.abc import Sequence

from jaxseg.weights.rules import Rule, Source, by_rules, conv_norm
from jaxseg.weights.tables.torchvision_resnet import IMAGE

EXPECTS = {"padding": "torch", "norm.epsilon": 1e-3, **IMAGE}
IGNORED = {"classifier.": "the ImageNet classifier"}
PARTS = ("expand", "depthwise", "excitation", "project")


def rules(names: Sequence[str], features: str = "features.") -> list[Rule]:
    """The rules for the blocks that the names are of: torchvision counts the parts that a block has."""
    found: dict[int, set[str]] = {}
    for name in names:
        match = re.search(r"/block(\d+)/(\w+)/", name)
        if match:
            found.setdefault(int(match[1]), set()).add(match[2])
    table = conv_norm("conv", f"{features}0.0", f"{features}0.1")
    table += conv_norm("conv_last", f"{features}{len(found) + 1}.0", f"{features}{len(found) + 1}.1")
    for block, parts in found.items():
        for place, part in enumerate(part for part in PARTS if part in parts):
            theirs = f"{features}{block + 1}.block.{place}"
            if part == "excitation":
                table += [Rule(f"block{block}/excitation/squeeze", f"{theirs}.fc1")]
                table += [Rule(f"block{block}/excitation/excite", f"{theirs}.fc2")]
            else:
                table += conv_norm(f"block{block}/{part}", f"{theirs}.0", f"{theirs}.1")
    return table


def TABLE(names: Sequence[str]) -> dict[str, Source]:
    """The sources of a backbone's variables."""
    return by_rules(rules(names))(names)
