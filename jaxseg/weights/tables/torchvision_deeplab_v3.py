"""torchvision's DeepLab v3 over ResNet into `deeplab_v3`.

Options: `backbone="resnet50"` or 101, `output_stride=8`, `head_convolution=True`, `alignment="half_pixel"`, and
`aux_tap="stage3"` for the auxiliary head, which the published files have.
"""

import numpy as np

from jaxseg.weights.rules import Rule, below, by_rules, conv_norm, convolution
from jaxseg.weights.tables.torchvision_resnet import IMAGE
from jaxseg.weights.tables.torchvision_resnet import RULES as BACKBONE

IGNORED = {"aux_classifier.": "the auxiliary head, where the network has none"}
EXPECTS = {
    "alignment": "half_pixel",
    "backbone.output_stride": 8,
    "backbone.multi_grid": (),
    "backbone.padding": "torch",
    "backbone.stride_in_1x1": False,
    "backbone.norm.epsilon": 1e-5,
    "aspp.rates": (12, 24, 36),
    "aspp.norm.epsilon": 1e-5,
    **IMAGE,
}


def pooling_first(array: np.ndarray) -> np.ndarray:
    """The projection's kernel, whose input channels have image pooling last, for our order, which has it first."""
    kernel = convolution(array)
    return np.roll(kernel, kernel.shape[3], axis=2)


def aspp(convs: str, project: str, pooling: str) -> list[Rule]:
    """Atrous spatial pyramid pooling below `aspp/`, from the names of the branches, the projection, the pooling."""
    return [
        *conv_norm("image_pooling", f"{pooling}.1", f"{pooling}.2"),
        *conv_norm("conv1x1", f"{convs}.0.0", f"{convs}.0.1"),
        *conv_norm(r"atrous(\d)", convs + r".\1.0", convs + r".\1.1"),
        *conv_norm("project", f"{project}.0", f"{project}.1", pooling_first),
    ]


def auxiliary(name: str) -> list[Rule]:
    """torchvision's FCN head in our auxiliary head."""
    return [*conv_norm("aux/conv", f"{name}.0", f"{name}.1"), Rule("aux/classifier", f"{name}.4")]


HEAD = [
    *below("aspp/", "classifier.0.", aspp("convs", "project", "convs.4")),
    *conv_norm("head", "classifier.1", "classifier.2"),
    Rule("classifier", "classifier.4"),
    *auxiliary("aux_classifier"),
]
TABLE = by_rules([*below("backbone/", "backbone.", BACKBONE), *HEAD])
