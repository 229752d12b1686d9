"""torchvision's DenseNet-121 to 201 into the backbones `densenet<depth>`."""

from jaxseg.weights.rules import Rule, by_rules, conv_norm
from jaxseg.weights.tables.torchvision_resnet import IMAGE

EXPECTS = {"norm.epsilon": 1e-5, **IMAGE}
IGNORED = {"classifier.": "the ImageNet classifier"}

RULES = [
    *conv_norm("stem", "features.conv0", "features.norm0"),
    Rule("norm_last", "features.norm5"),
    Rule(r"block(\d)/layer(\d+)/(\w+)", r"features.denseblock\1.denselayer\2.\3"),
    Rule(r"transition(\d)_(norm|conv)", r"features.transition\1.\2"),
]
TABLE = by_rules(RULES)
