"""Backbones against torchvision and timm: random weights and running statistics, odd sizes, every stride."""

import jax
import numpy as np
import pytest

from jaxseg.backbones import densenet121, densenet161, mobilenet_v1, mobilenet_v2
from jaxseg.backbones.mobilenet_v3 import build_mobilenet_v3
from jaxseg.backbones.xception import build_xception
from tests.references.record import record_difference
from tests.references.torch_variables import randomize, relative_difference, template_of, to_variables

torch = pytest.importorskip("torch")
nn = torch.nn

DENSENET = [
    (r"^features\.conv0", "stem/conv"),
    (r"^features\.norm0", "stem/norm"),
    (r"^features\.norm5", "norm_last"),
    (r"^features\.denseblock(\d)\.denselayer(\d+)\.", r"block\1/layer\2/"),
    (r"^features\.transition(\d)\.(norm|conv)", r"transition\1_\2"),
]
MOBILENET_V2 = [
    (r"^features\.0\.0", "conv/conv"),
    (r"^features\.0\.1", "conv/norm"),
    (r"^features\.18\.0", "conv_last/conv"),
    (r"^features\.18\.1", "conv_last/norm"),
    (r"^features\.1\.conv\.0\.0", "block0/depthwise/conv"),
    (r"^features\.1\.conv\.0\.1", "block0/depthwise/norm"),
    (r"^features\.1\.conv\.1", "block0/project/conv"),
    (r"^features\.1\.conv\.2", "block0/project/norm"),
    (r"^features\.(\d+)\.conv\.0\.", r"\1/expand/"),
    (r"^features\.(\d+)\.conv\.1\.", r"\1/depthwise/"),
    (r"^features\.(\d+)\.conv\.2", r"\1/project/0"),
    (r"^features\.(\d+)\.conv\.3", r"\1/project/1"),
    (r"/0$", "/conv"),
    (r"/1$", "/norm"),
    (r"^(\d+)/", lambda match: f"block{int(match[1]) - 1}/"),
]


def mobilenet_v3_rules(network):
    """torchvision numbers the parts of a unit by what the unit has."""
    rules = []
    for i, unit in enumerate(network.features[1:-1]):
        parts = [type(part).__name__ for part in unit.block]
        convs = [j for j, part in enumerate(parts) if part == "Conv2dNormActivation"]
        kinds = ["expand", "depthwise", "project"][-len(convs) :]
        for j, kind in zip(convs, kinds, strict=True):
            rules += [(rf"^features\.{i + 1}\.block\.{j}\.0", f"block{i}/{kind}/conv")]
            rules += [(rf"^features\.{i + 1}\.block\.{j}\.1", f"block{i}/{kind}/norm")]
        rules += [(rf"^features\.{i + 1}\.block\.\d\.fc1", f"block{i}/excitation/squeeze")]
        rules += [(rf"^features\.{i + 1}\.block\.\d\.fc2", f"block{i}/excitation/excite")]
    last = len(network.features) - 1
    for j, kind in enumerate(("conv", "norm")):
        rules += [(rf"^features\.0\.{j}", f"conv/{kind}"), (rf"^features\.{last}\.{j}", f"conv_last/{kind}")]
    return rules


def compare(name, reference, module, variables, image, theirs):
    """Every tensor of `theirs` (tap -> NCHW) against the tap of that name."""
    ours = jax.jit(lambda v, x: module.apply(v, x, False))(variables, np.moveaxis(image.numpy(), 1, -1))
    differences = {tap: relative_difference(ours[tap], value) for tap, value in theirs.items()}
    record_difference(f"backbone {name}", reference, max(differences.values()))
    assert max(differences.values()) < 1e-4, differences


def picture(height=61, width=75):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("build, name", [(densenet121.build, "densenet121"), (densenet161.build, "densenet161")])
def test_densenet(build, name):
    torchvision = pytest.importorskip("torchvision")
    layers = (2, 2, 2, 2)
    growth, stem = (48, 96) if name == "densenet161" else (32, 64)
    network = torchvision.models.densenet.DenseNet(growth, layers, stem, num_classes=1)
    network = randomize(network)
    module = build(layers=layers)
    variables = to_variables(network.state_dict(), DENSENET, template_of(module), ignored=["classifier"])
    image, theirs = picture(), {}
    with torch.no_grad():
        x = network.features.relu0(network.features.norm0(network.features.conv0(image)))
        theirs["s2"] = x.clone()
        x = network.features.pool0(x)
        for i in range(1, 4):
            x = getattr(network.features, f"denseblock{i}")(x)
            transition = getattr(network.features, f"transition{i}")
            theirs[f"s{2 ** (i + 1)}"] = torch.relu(transition.norm(x))
            x = transition(x)
        theirs["s32"] = torch.relu(network.features(image))
    compare(name, f"torchvision {torchvision.__version__} {name}, two layers a block", module, variables, image, theirs)


def test_mobilenet_v2():
    torchvision = pytest.importorskip("torchvision")
    network = randomize(torchvision.models.mobilenet_v2(num_classes=1))
    module = mobilenet_v2.build(padding="torch", norm_epsilon=1e-5, last_convolution=True)
    variables = to_variables(network.state_dict(), MOBILENET_V2, template_of(module), ignored=["classifier"])
    image, theirs = picture(), {}
    with torch.no_grad():
        for tap, last in {"s2": 2, "s4": 4, "s8": 7, "s16": 14, "block16": 18, "s32": 19}.items():
            theirs[tap] = network.features[:last](image)
    compare("mobilenet_v2", f"torchvision {torchvision.__version__} mobilenet_v2", module, variables, image, theirs)


@pytest.mark.parametrize("size", ["large", "small"])
@pytest.mark.parametrize("output_stride", [32, 16])
def test_mobilenet_v3(size, output_stride):
    torchvision = pytest.importorskip("torchvision")
    build = getattr(torchvision.models, f"mobilenet_v3_{size}")
    network = randomize(build(num_classes=1, dilated=output_stride == 16))
    module = build_mobilenet_v3(size, output_stride=output_stride)
    rules = mobilenet_v3_rules(network)
    variables = to_variables(network.state_dict(), rules, template_of(module), ignored=["classifier"])
    image, theirs = picture(), {}
    strided = [i for i, part in enumerate(network.features) if getattr(part, "_is_cn", False)]
    with torch.no_grad():
        for stage, i in enumerate(strided, start=1):
            theirs[f"c{stage}"] = network.features[: i + 1](image)
        theirs["c5"] = theirs[f"s{output_stride}"] = network.features(image)
    name = f"mobilenet_v3_{size} stride {output_stride}"
    compare(name, f"torchvision {torchvision.__version__}", module, variables, image, theirs)


def test_mobilenet_v1():
    timm = pytest.importorskip("timm")
    network = randomize(timm.create_model("mobilenetv1_100", features_only=True))
    theirs_epsilon = {m.eps for m in network.modules() if isinstance(m, nn.BatchNorm2d)}
    module = mobilenet_v1.build(padding="torch", norm_epsilon=theirs_epsilon.pop())
    names = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    norms = [n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    ours = ["conv"] + [f"block{i}/{half}" for i in range(13) for half in ("depthwise", "pointwise")]
    rules = [(f"^{theirs}$", f"{name}/conv") for theirs, name in zip(names, ours, strict=True)]
    rules += [(f"^{theirs}$", f"{name}/norm") for theirs, name in zip(norms, ours, strict=True)]
    variables = to_variables(network.state_dict(), rules, template_of(module))
    image = picture()
    with torch.no_grad():
        theirs = dict(zip(("s2", "s4", "s8", "s16", "s32"), network(image), strict=True))
    compare("mobilenet_v1", f"timm {timm.__version__} mobilenetv1_100", module, variables, image, theirs)


class SeparableTwin(nn.Module):
    """Depthwise 3x3, batch norm, 1x1, batch norm, with ReLU before or within."""

    def __init__(self, c, n, stride, rate, inside):
        super().__init__()
        self.inside = inside
        self.depthwise = nn.Conv2d(c, c, 3, stride, rate, rate, c, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(c, eps=1e-3)
        self.pointwise = nn.Conv2d(c, n, 1, bias=False)
        self.pointwise_norm = nn.BatchNorm2d(n, eps=1e-3)

    def forward(self, x):
        relu = torch.relu if self.inside else lambda y: y
        x = x if self.inside else torch.relu(x)
        return relu(self.pointwise_norm(self.pointwise(relu(self.depthwise_norm(self.depthwise(x))))))


class UnitTwin(nn.Module):
    """Three separable convolutions and a shortcut."""

    def __init__(self, c, features, stride, rate, kind):
        super().__init__()
        sides = [c, *features]
        self.separable = nn.ModuleList(
            SeparableTwin(sides[i], sides[i + 1], stride if i == 2 else 1, rate, kind == "none") for i in range(3)
        )
        self.kind = kind
        if kind == "conv":
            self.shortcut = nn.Conv2d(c, features[2], 1, stride, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(features[2], eps=1e-3)

    def forward(self, x):
        second = self.separable[1](self.separable[0](x))
        y = self.separable[2](second)
        if self.kind == "conv":
            x = self.shortcut_norm(self.shortcut(x))
        return (y if self.kind == "none" else y + x), second


# name, channels, stride, rate, shortcut at output strides 16 and 8: the table of the paper, written out.
XCEPTION = {
    16: [
        ("entry1", (16, 16, 16), 2, 1, "conv"),
        ("entry2", (32, 32, 32), 2, 1, "conv"),
        ("entry3", (91, 91, 91), 2, 1, "conv"),
        *((f"middle{i}", (91, 91, 91), 1, 1, "identity") for i in range(1, 9)),
        ("exit1", (91, 128, 128), 1, 1, "conv"),
        ("exit2", (192, 192, 256), 1, 2, "none"),
    ],
    8: [
        ("entry1", (16, 16, 16), 2, 1, "conv"),
        ("entry2", (32, 32, 32), 2, 1, "conv"),
        ("entry3", (91, 91, 91), 1, 1, "conv"),
        *((f"middle{i}", (91, 91, 91), 1, 2, "identity") for i in range(1, 9)),
        ("exit1", (91, 128, 128), 1, 2, "conv"),
        ("exit2", (192, 192, 256), 1, 4, "none"),
    ],
}


@pytest.mark.parametrize("output_stride", [16, 8])
def test_xception41_at_an_eighth_of_its_width(output_stride):
    torch.manual_seed(0)
    network = nn.ModuleDict(
        {
            "stem1": nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4, eps=1e-3), nn.ReLU()),
            "stem2": nn.Sequential(nn.Conv2d(4, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8, eps=1e-3), nn.ReLU()),
        }
    )
    channels = 8
    for name, features, stride, rate, kind in XCEPTION[output_stride]:
        network[name] = UnitTwin(channels, features, stride, rate, kind)
        channels = features[2]
    randomize(network)
    image, theirs = picture(), {}
    with torch.no_grad():
        x = theirs["stem"] = network["stem2"](network["stem1"](image))
        for name, *_ in XCEPTION[output_stride]:
            x, second = network[name](x)
            theirs[name] = x
            if name in ("entry1", "entry2"):
                theirs["s2" if name == "entry1" else "s4"] = second
    theirs[f"s{output_stride}"] = x
    rules = [
        (r"^(stem\d)\.0", r"\1/conv"),
        (r"^(stem\d)\.1", r"\1/norm"),
        (r"\.separable\.(\d)\.", lambda match: f"/separable{int(match[1]) + 1}/"),
        (r"/(\w+)_norm$", r"/\1/norm"),
        (r"/(depthwise|pointwise)$", r"/\1/conv"),
        (r"\.shortcut_norm$", "/shortcut/norm"),
        (r"\.shortcut$", "/shortcut/conv"),
    ]
    module = build_xception(41, output_stride=output_stride, width=1 / 8)
    variables = to_variables(network.state_dict(), rules, template_of(module))
    compare(f"xception41 stride {output_stride}", "torch twin of the layer table", module, variables, image, theirs)
