"""torchvision's VGG-16, with and without batch norm, into the backbone `vgg16`, and its fully connected layers.

For the backbone alone take the scope "backbone". For a network with `fc6` and `fc7` as convolutions of 7x7 and 1x1 with
4096 channels (FCN, the dilated front end) take the whole network, and `skip` what comes after them.
"""

from collections.abc import Sequence

from jaxseg.weights.rules import Rule, Source, by_rules, linear_on_pixels
from jaxseg.weights.tables.torchvision_resnet import IMAGE

EXPECTS = dict(IMAGE)
IGNORED = {
    "classifier.0.": "fc6, where the network has none",
    "classifier.3.": "fc7, where the network has none",
    "classifier.6.": "the ImageNet classifier",
}
UNITS = (2, 2, 3, 3, 3)


def rules(*, batch_norm: bool) -> list[Rule]:
    """torchvision counts every layer: convolution, batch norm where there is one, ReLU, and pooling after a stage."""
    table = [Rule(r"(?:\w+/)?fc6", "classifier.0", linear_on_pixels(7)), Rule(r"(?:\w+/)?fc7", "classifier.3")]
    place = 0
    for stage, units in enumerate(UNITS, start=1):
        for unit in range(1, units + 1):
            table.append(Rule(rf"(?:backbone/)?stage{stage}/conv{unit}", f"features.{place}"))
            table.append(Rule(rf"(?:backbone/)?stage{stage}/norm{unit}", f"features.{place + 1}"))
            place += 3 if batch_norm else 2
        place += 1
    return table


def TABLE(names: Sequence[str]) -> dict[str, Source]:
    """The sources of the network's variables."""
    return by_rules(rules(batch_norm=any("/norm1/" in name for name in names)))(names)
