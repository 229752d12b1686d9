"""segmentation_models_pytorch's UPerNet over ResNet into `upernet`.

Options: `backbone`, `pyramid_channels=256`, `fpn_channels=256`, `feature_norm=True`, `pool_resize_first=False`,
`logits_alignment="align_corners"` and `backbone_options={"stem": "conv7"}`.
"""

from collections.abc import Iterable

from jaxseg.weights.rules import Rule, below, by_rules, conv_norm, minus
from jaxseg.weights.tables.smp_unet import ENCODER, IGNORED
from jaxseg.weights.tables.torchvision_resnet import RULES as RESNET

HEAD = {
    "alignment": "half_pixel",
    "logits_alignment": "align_corners",
    "feature_norm": True,
    "pooling.bins": (1, 2, 3, 6),
    "pooling.resize_first": False,
    "pooling.norm.epsilon": 1e-5,
    "pyramid.norm.epsilon": 1e-5,
    "fusion.norm.epsilon": 1e-5,
}
EXPECTS = {**HEAD, **ENCODER}
__all__ = ["EXPECTS", "IGNORED", "TABLE"]


def _levels() -> list[Rule]:
    """The pyramid's levels; the feature pyramid's are counted from the coarsest."""
    table = []
    for i, bins in enumerate((1, 2, 3, 6)):
        name = f"decoder.psp.blocks.{i}.1"
        table += conv_norm(f"pooling/level{bins}", f"{name}.0", f"{name}.1")
    for level in (1, 2, 3):
        lateral, smooth = (
            f"decoder.fpn_lateral_blocks.{3 - level}.conv_norm_relu",
            f"decoder.fpn_conv_blocks.{3 - level}",
        )
        table += conv_norm(f"pyramid/lateral{level}", f"{lateral}.0", f"{lateral}.1")
        table += conv_norm(f"pyramid/smooth{level}", f"{smooth}.0", f"{smooth}.1")
    return table


def rules(encoder: Iterable[Rule]) -> list[Rule]:
    """The network's rules from those of its encoder."""
    return [
        *below("backbone/", "encoder.", encoder),
        Rule(r"feature_norm(\d)", minus(1, 1, "decoder.feature_norms.{1}")),
        *_levels(),
        *conv_norm("bottleneck", "decoder.psp.out_conv.0", "decoder.psp.out_conv.1"),
        *conv_norm("fusion", "decoder.fusion_block.0", "decoder.fusion_block.1"),
        Rule("classifier", "segmentation_head.0"),
    ]


TABLE = by_rules(rules(RESNET))
