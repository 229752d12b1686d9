"""Encoder-decoders against segmentation_models_pytorch, torchvision, and twins written from the layer tables."""

import re

import jax
import numpy as np
import pytest

from jaxseg.models import lraspp, residual_fcn, segnet, segnet_basic, unet, unet_encoder
from tests.references.record import record_difference
from tests.references.test_backbone_references import MOBILENET_V2, mobilenet_v3_rules, picture
from tests.references.torch_variables import randomize, relative_difference, template_of, to_variables

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional

RESNET = [
    (r"^conv1$", "stem/conv"),
    (r"^bn1$", "stem/norm"),
    (r"^layer(\d)\.(\d+)\.", lambda m: f"stage{m[1]}_unit{int(m[2]) + 1}/"),
    (r"/(conv\d)$", r"/\1/conv"),
    (r"/bn(\d)$", r"/conv\1/norm"),
    (r"/downsample\.0$", "/shortcut/conv"),
    (r"/downsample\.1$", "/shortcut/norm"),
]


def compare(name, reference, module, variables, image, theirs):
    """The logits against an NCHW tensor."""
    x = np.moveaxis(image.numpy(), 1, -1)
    ours = jax.jit(lambda v, x: module.apply(v, x, False)["logits"])(variables, x)
    difference = relative_difference(ours, theirs)
    record_difference(f"model {name}", reference, difference)
    assert difference < 1e-4


def transposed_conv(pattern):
    """The layout of a transposed convolution's kernel: PyTorch's IOHW became HWOI and must be HWIO."""
    return pattern, lambda value: np.swapaxes(value, 2, 3)


def below(prefix, rules):
    """Rules for the names after `prefix.`, whose results lie below `backbone/`."""

    def apply(match):
        path = match[1]
        for pattern, replacement in rules:
            path = re.sub(pattern, replacement, path)
        return f"backbone/{path}"

    return (rf"^{prefix}\.(.*)$", apply)


@pytest.mark.parametrize("encoder", ["resnet18", "mobilenet_v2"])
def test_smp_unet(encoder):
    smp = pytest.importorskip("segmentation_models_pytorch")
    network = randomize(smp.Unet(encoder, encoder_weights=None, classes=4))
    options = {"padding": "torch", "norm_epsilon": 1e-5, "last_convolution": True} if encoder == "mobilenet_v2" else {}
    module = unet_encoder.build(num_classes=4, backbone=encoder, backbone_options=options)
    rules = [
        below("encoder", MOBILENET_V2 if encoder == "mobilenet_v2" else RESNET),
        (r"^decoder\.blocks\.(\d)\.(conv\d)\.0$", lambda m: f"decoder{int(m[1]) + 1}_{m[2]}/conv"),
        (r"^decoder\.blocks\.(\d)\.(conv\d)\.1$", lambda m: f"decoder{int(m[1]) + 1}_{m[2]}/norm"),
        (r"^segmentation_head\.0$", "classifier"),
    ]
    variables = to_variables(network.state_dict(), rules, template_of(module))
    for height, width in ((61, 75), (64, 96)):
        image = picture(height, width)
        with torch.no_grad():
            theirs = network(image)
        name = f"smp {smp.__version__} Unet {encoder}"
        compare(f"unet_encoder {encoder} {height}x{width}", name, module, variables, image, theirs)


def lraspp_of_torchvision(classes):
    """torchvision's network of random weights, and the rules of its names."""
    torchvision = pytest.importorskip("torchvision")
    build = torchvision.models.segmentation.lraspp_mobilenet_v3_large
    network = build(weights=None, weights_backbone=None, num_classes=classes)

    class Features:
        features = nn.Sequential(*network.backbone.values())

    rules = [
        (r"^backbone\.", "backbone/features."),
        *((p.replace("^", "^backbone/"), f"backbone/{r}") for p, r in mobilenet_v3_rules(Features)),
        (r"^classifier\.cbr\.0$", "conv/conv"),
        (r"^classifier\.cbr\.1$", "conv/norm"),
        (r"^classifier\.scale\.1$", "gate"),
        (r"^classifier\.(low|high)_classifier$", r"\1_classifier"),
    ]
    return network, rules, f"torchvision {torchvision.__version__} lraspp_mobilenet_v3_large"


def test_lraspp():
    network, rules, name = lraspp_of_torchvision(21)
    randomize(network)
    module = lraspp.build(num_classes=21)
    variables = to_variables(network.state_dict(), rules, template_of(module))
    image = picture()
    with torch.no_grad():
        theirs = network(image)["out"]
    compare("lraspp", name, module, variables, image, theirs)


class UNetTwin(nn.Module):
    """The layer table, for valid convolutions or padded ones with batch norm."""

    def __init__(self, classes, width, same):
        super().__init__()
        self.same = same

        def double(c, n):
            layers = []
            for i in range(2):
                layers.append(nn.Conv2d(c if i == 0 else n, n, 3, padding=int(same), bias=not same))
                layers += [nn.BatchNorm2d(n)] * same + [nn.ReLU()]
            return nn.Sequential(*layers)

        sides = [3] + [width * 2**i for i in range(5)]
        self.encoder = nn.ModuleList(double(sides[i], sides[i + 1]) for i in range(5))
        self.up = nn.ModuleList(nn.ConvTranspose2d(sides[i + 2], sides[i + 1], 2, 2) for i in range(4))
        self.decoder = nn.ModuleList(double(sides[i + 2], sides[i + 1]) for i in range(4))
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        skips = []
        for i, block in enumerate(self.encoder):
            x = block(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for i in (3, 2, 1, 0):
            up, skip = self.up[i](x), skips[i]
            dy, dx = skip.shape[2] - up.shape[2], skip.shape[3] - up.shape[3]
            if self.same:
                up = F.pad(up, (dx // 2, dx - dx // 2, dy // 2, dy - dy // 2))
            else:
                skip = skip[:, :, dy // 2 : dy // 2 + up.shape[2], dx // 2 : dx // 2 + up.shape[3]]
            x = self.decoder[i](torch.cat([skip, up], 1))
        return self.classifier(x)


@pytest.mark.parametrize("same", [False, True])
def test_unet(same):
    torch.manual_seed(0)
    network = randomize(UNetTwin(3, 4, same))
    names = {0: "conv1", 1: "norm1", 3: "conv2", 4: "norm2"} if same else {0: "conv1", 2: "conv2"}
    rules = [
        (r"^encoder\.4\.(\d)$", lambda m: f"bottom/{names[int(m[1])]}"),
        (r"^(encoder|decoder)\.(\d)\.(\d)$", lambda m: f"{m[1]}{int(m[2]) + 1}/{names[int(m[3])]}"),
        (r"^up\.(\d)$", lambda m: f"up{int(m[1]) + 1}"),
    ]
    module = unet.build(num_classes=3, width=4, padding="same" if same else "valid", batch_norm=same)
    hooks = [transposed_conv(r"params/up\d/kernel")]
    variables = to_variables(network.state_dict(), rules, template_of(module), hooks=hooks)
    image = picture(61, 75)
    with torch.no_grad():
        if same:
            theirs = network(image)
        else:
            padded = np.pad(image.numpy(), ((0, 0), (0, 0), (92, 252 - 61 - 92), (92, 268 - 75 - 92)), mode="reflect")
            theirs = network(torch.from_numpy(padded))[:, :, :61, :75]
    compare(f"unet {'same, batch norm' if same else 'valid'}", "torch twin", module, variables, image, theirs)


class SegNetTwin(nn.Module):
    """Encoder and decoder by unpooling at the stored places."""

    def __init__(self, classes, encoder, decoder, kernel, basic):
        super().__init__()
        self.basic = basic

        def stage(c, channels, relu):
            layers = nn.ModuleList()
            for n in channels:
                parts = [nn.Conv2d(c, n, kernel, padding=kernel // 2), nn.BatchNorm2d(n)] + [nn.ReLU()] * relu
                layers.append(nn.Sequential(*parts))
                c = n
            return layers

        sides = [3] + [channels[-1] for channels in encoder]
        self.encoder = nn.ModuleList(stage(sides[i], encoder[i], True) for i in range(len(encoder)))
        sides = [encoder[-1][-1]] + [channels[-1] for channels in decoder]
        self.decoder = nn.ModuleList(stage(sides[i], decoder[i], not basic) for i in range(len(decoder)))
        self.classifier = nn.Conv2d(sides[-1], classes, 1 if basic else 3, padding=0 if basic else 1)

    def forward(self, x):
        if self.basic:
            x = nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)(x)
        places = []
        for stage in self.encoder:
            for layer in stage:
                x = layer(x)
            size = x.shape
            x, indices = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
            places.append((indices, size))
        for stage in self.decoder:
            indices, size = places.pop()
            x = F.max_unpool2d(x, indices, 2, output_size=size[2:])
            for layer in stage:
                x = layer(x)
        return self.classifier(x)


@pytest.mark.parametrize("basic", [False, True])
def test_segnet(basic):
    torch.manual_seed(0)
    encoder = ((8,),) * 4 if basic else ((8, 8), (12, 12), (16, 16, 16))
    decoder = ((8,),) * 4 if basic else ((16, 16, 12), (12, 8), (8,))
    network = randomize(SegNetTwin(3, encoder, decoder, 7 if basic else 3, basic))
    stages = len(encoder)
    rules = [
        (r"^encoder\.(\d)\.(\d)\.", lambda m: f"encoder{int(m[1]) + 1}_layer{int(m[2]) + 1}/"),
        (r"^decoder\.(\d)\.(\d)\.", lambda m: f"decoder{stages - int(m[1])}_layer{int(m[2]) + 1}/"),
        (r"/0$", "/conv"),
        (r"/1$", "/norm"),
    ]
    if basic:
        module = segnet_basic.build(num_classes=3, width=8)
    else:
        module = segnet.build(num_classes=3, encoder=encoder, decoder=decoder)
    variables = to_variables(network.state_dict(), rules, template_of(module))
    image = picture()
    with torch.no_grad():
        theirs = network(image)
    compare("segnet_basic" if basic else "segnet", "torch twin, max_unpool2d", module, variables, image, theirs)


class BlockTwin(nn.Module):
    """A bottleneck or a simple block of the residual FCN, with its short skip."""

    def __init__(self, c, f, bottleneck, halve, double):
        super().__init__()
        self.bottleneck, self.halve, self.double = bottleneck, halve, double
        n = 4 * f if bottleneck else f
        if bottleneck:
            self.norms = nn.ModuleList([nn.BatchNorm2d(c), nn.BatchNorm2d(f), nn.BatchNorm2d(f)])
            self.convs = nn.ModuleList(
                [nn.Conv2d(c, f, 1, 2 if halve else 1), nn.Conv2d(f, f, 3, padding=1), nn.Conv2d(f, n, 1)]
            )
        else:
            self.norm, self.conv = nn.BatchNorm2d(c), nn.Conv2d(c, f, 3, padding=1)
        self.shortcut = nn.Conv2d(c, n, 1) if c != n else None
        self.out = n

    def forward(self, x):
        def up(y):
            return y.repeat_interleave(2, 2).repeat_interleave(2, 3) if self.double else y

        if self.bottleneck:
            y = x
            for i in range(3):
                y = torch.relu(self.norms[i](y))
                y = self.convs[i](up(y) if i == 2 else y)
        else:
            y = torch.relu(self.norm(x))
            y = up(self.conv(F.max_pool2d(y, 2, ceil_mode=True) if self.halve else y))
        x = up(x[:, :, ::2, ::2] if self.halve else x)
        x = x if self.shortcut is None else self.shortcut(x)
        return y + x


def test_residual_fcn():
    """fcn_maker's layout: one simple block, stages of 2 and 1, across 2, sums along both kinds of skips."""
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    network = nn.ModuleDict({"first": first})
    c, downs, skips = 8, [8], {}
    plan = [
        ("down1", 8, 1, False, True, False),
        ("down2", 8, 2, True, True, False),
        ("down3", 16, 1, True, True, False),
    ]
    plan += [("across", 32, 2, True, True, True)]
    plan += [("up3", 16, 1, True, False, True), ("up2", 8, 2, True, False, True), ("up1", 8, 1, False, False, True)]
    for name, features, units, bottleneck, halve, double in plan:
        if name.startswith("up"):
            skip = downs[int(name[2])]
            if c != skip:
                skips[name] = network[f"skip{name[2]}"] = nn.Conv2d(c, skip, 1)
            c = skip
        for i in range(units):
            unit = BlockTwin(c, features, bottleneck, halve and i == 0, double and i == units - 1)
            network[f"{name}_unit{i + 1}"], c = unit, unit.out
        if name.startswith("down"):
            downs.append(c)
    network["last_norm"], network["last_conv"], network["classifier"] = nn.BatchNorm2d(8), last, nn.Conv2d(8, 3, 1)
    randomize(network)
    image = picture(61, 75)
    with torch.no_grad():
        x = first(image)
        maps = [x]
        for name, _, units, *_ in plan:
            if name.startswith("up"):
                skip = maps[int(name[2])]
                x = x[:, :, : skip.shape[2], : skip.shape[3]]
                x = (skips[name](x) if name in skips else x) + skip
            for i in range(units):
                x = network[f"{name}_unit{i + 1}"](x)
            if name.startswith("down"):
                maps.append(x)
        x = x[:, :, :61, :75] + maps[0]
        theirs = network["classifier"](last(torch.relu(network["last_norm"](x))))
    rules = [
        (r"\.norms\.(\d)$", lambda m: f"/conv{int(m[1]) + 1}/norm"),
        (r"\.convs\.(\d)$", lambda m: f"/conv{int(m[1]) + 1}/conv"),
        (r"^last_", "last/"),
        (r"\.", "/"),
    ]
    module = residual_fcn.build(num_classes=3, width=8, simple_blocks=1, depths=(2, 1, 2))
    variables = to_variables(network.state_dict(), rules, template_of(module))
    compare("residual_fcn", "torch twin", module, variables, image, theirs)
