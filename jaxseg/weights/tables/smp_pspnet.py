"""segmentation_models_pytorch's PSPNet over ResNet into `pspnet`.

Options: `backbone`, `pyramid_channels` (a quarter of what the backbone gives at stride 8: 32 for ResNet-18 and 34, 128
for the deeper ones), `single_bin_norm=False`, `fusion_kernel_size=1`, `classifier_kernel_size=3`,
`channel_dropout=True`, `dropout_rate=0.2` and `backbone_options={"stem": "conv7", "stop_at_output_stride": True}`.
"""

from collections.abc import Iterable

import numpy as np

from jaxseg.weights.rules import Rule, below, by_rules, conv_norm, convolution
from jaxseg.weights.tables.smp_unet import ENCODER
from jaxseg.weights.tables.smp_unet import IGNORED as CLASSIFIER
from jaxseg.weights.tables.torchvision_resnet import RULES as RESNET

HEAD = {
    "alignment": "align_corners",
    "deepest": "s8",
    "channel_dropout": True,
    "pooling.bins": (1, 2, 3, 6),
    "pooling.single_bin_norm": False,
    "pooling.norm.epsilon": 1e-5,
    "fusion.norm.epsilon": 1e-5,
    "backbone.stop_at_output_stride": True,
}
EXPECTS = {**HEAD, **ENCODER}
IGNORED = {f"encoder.layer{i}.": "a stage beyond stride 8, which nothing uses" for i in (3, 4)} | CLASSIFIER


def input_first(array: np.ndarray) -> np.ndarray:
    """The pyramid's input stands before its levels here, after them in the file; each is half of the channels."""
    levels, features = np.split(convolution(array), 2, axis=2)
    return np.concatenate([features, levels], axis=2)


def rules(encoder: Iterable[Rule]) -> list[Rule]:
    """The network's rules from those of its encoder."""
    table = [*below("backbone/", "encoder.", encoder), Rule("pooling/level1", "decoder.psp.blocks.0.pool.1.0")]
    for i, bins in enumerate((2, 3, 6), start=1):
        level = f"decoder.psp.blocks.{i}.pool.1"
        table += conv_norm(f"pooling/level{bins}", f"{level}.0", f"{level}.1")
    table += conv_norm("fusion", "decoder.conv.0", "decoder.conv.1", input_first)
    return [*table, Rule("classifier", "segmentation_head.0")]


TABLE = by_rules(rules(RESNET))
