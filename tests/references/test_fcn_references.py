"""Pooling and transposed convolution against PyTorch, VGG, ResNet and FCN against torchvision and a twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.backbones import resnet18, resnet34, resnet50, vgg16
from jaxseg.models import fcn, fcn_resnet
from jaxseg.ops.local_response_norm import local_response_norm
from jaxseg.ops.pooling import (
    adaptive_average_pool,
    average_pool,
    max_pool,
    max_pool_with_indices,
    unpool,
)
from jaxseg.ops.transposed import conv_transpose
from tests.references.record import record_difference
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


def torch_image(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def channels_last(x):
    return jnp.asarray(np.moveaxis(x.detach().numpy(), 1, -1))


def agree(name, reference, ours, theirs, limit=1e-5):
    difference = relative_difference(ours, theirs)
    record_difference(name, f"torch {torch.__version__} {reference}", difference)
    assert difference < limit


@pytest.mark.parametrize(
    "k, s, pad, out_pad, groups", [(4, 2, 1, 0, 1), (3, 2, 1, 1, 1), (16, 8, 4, 0, 1), (3, 2, 0, 1, 2), (4, 2, 1, 0, 6)]
)
def test_conv_transpose(k, s, pad, out_pad, groups):
    x, weight = torch_image(2, 6, 5, 7), torch_image(6, 12 // groups, k, k, seed=1)
    theirs = F.conv_transpose2d(x, weight, stride=s, padding=pad, output_padding=out_pad, groups=groups)
    kernel = jnp.asarray(weight.numpy().transpose(2, 3, 1, 0))
    options = {"strides": s, "padding": pad, "output_padding": out_pad, "groups": groups}
    ours = jax.jit(lambda x, w: conv_transpose(x, w, **options))(channels_last(x), kernel)
    agree(f"conv_transpose k{k} s{s} groups {groups}", "conv_transpose2d", ours, theirs)


def test_pooling():
    x = torch_image(2, 5, 13, 10)
    image = channels_last(x)

    @jax.jit
    def every(x):
        return (
            max_pool(x, 3, strides=2, padding=1, ceil=True),
            average_pool(x, 3, strides=2, padding=1, ceil=True),
            average_pool(x, 3, strides=2, padding=1, ceil=True, count_include_pad=False),
            adaptive_average_pool(x, (6, 3)),
            local_response_norm(x, 3, alpha=0.1, k=2.0),
        )

    theirs = (
        F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
        F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
        F.adaptive_avg_pool2d(x, (6, 3)),
        F.local_response_norm(x, 3, alpha=0.1, k=2.0),
    )
    names = ("max_pool2d", "avg_pool2d", "avg_pool2d without padding", "adaptive_avg_pool2d", "local_response_norm")
    for name, a, b in zip(names, every(image), theirs, strict=True):
        agree(name, name, a, b)


def test_pooling_with_indices_and_unpooling():
    x = torch_image(2, 3, 9, 12)
    values, flat = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
    theirs = F.max_unpool2d(values, flat, 2, 2, output_size=(9, 12))
    ours, indices = max_pool_with_indices(channels_last(x), ceil=True)
    rows, columns = 2 * np.arange(5)[:, None, None], 2 * np.arange(6)[:, None]
    at = (rows + np.asarray(indices) // 2) * 12 + columns + np.asarray(indices) % 2
    np.testing.assert_array_equal(at, np.moveaxis(flat.numpy(), 1, -1))
    agree("max_unpool2d", "max_unpool2d", unpool(ours, indices, (9, 12)), theirs)


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_vgg(name):
    torchvision = pytest.importorskip("torchvision")
    network = randomize(getattr(torchvision.models, name)(weights=None)).features
    module = vgg16.build(batch_norm=name == "vgg16_bn")
    rules, stage, conv = [], 1, 0
    for i, part in enumerate(network):
        conv += isinstance(part, nn.Conv2d)
        kind = "norm" if isinstance(part, nn.BatchNorm2d) else "conv"
        rules.append((rf"^{i}$", f"stage{stage}/{kind}{conv}"))
        if isinstance(part, nn.MaxPool2d):
            stage, conv = stage + 1, 0
    variables = to_variables(network.state_dict(), rules, template_of(module))
    image = torch_image(1, 3, 67, 81)
    with torch.no_grad():
        theirs = network(image)
    ours = jax.jit(lambda v, x: module.apply(v, x, False)["s32"])(variables, channels_last(image))
    agree(f"backbone {name}", f"torchvision {torchvision.__version__} {name}", ours, theirs, 1e-4)


@pytest.mark.parametrize("name, build", [("resnet18", resnet18), ("resnet34", resnet34), ("resnet50", resnet50)])
def test_resnet(name, build):
    torchvision = pytest.importorskip("torchvision")
    network = randomize(getattr(torchvision.models, name)(weights=None))
    module = build.build()
    variables = to_variables(network.state_dict(), RESNET, template_of(module), ignored=("fc.",))
    image = torch_image(1, 3, 67, 81)
    with torch.no_grad():
        x = network.maxpool(network.relu(network.bn1(network.conv1(image))))
        for i in range(1, 5):
            x = getattr(network, f"layer{i}")(x)
    ours = jax.jit(lambda v, x: module.apply(v, x, False)["s32"])(variables, channels_last(image))
    agree(f"backbone {name}", f"torchvision {torchvision.__version__} {name}", ours, x, 1e-4)


def test_fcn_resnet50():
    torchvision = pytest.importorskip("torchvision")
    build = torchvision.models.segmentation.fcn_resnet50
    network = randomize(build(weights=None, weights_backbone=None, num_classes=21, aux_loss=True))
    module = fcn_resnet.build(num_classes=21, aux_tap="stage3")
    head = {"0": "conv/conv", "1": "conv/norm", "4": "classifier"}
    rules = [
        (r"^classifier\.(\d)$", lambda m: "head/" + head[m[1]]),
        (r"^aux_classifier\.(\d)$", lambda m: "aux/" + head[m[1]]),
        (r"^backbone\.", ""),
        *RESNET,
        (r"^(stem|stage)", r"backbone/\1"),
    ]
    variables = to_variables(network.state_dict(), rules, template_of(module))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 35_322_218
    image = torch_image(1, 3, 67, 81)
    with torch.no_grad():
        theirs = network(image)
    ours = jax.jit(lambda v, x: module.apply(v, x, False))(variables, channels_last(image))
    name = f"torchvision {torchvision.__version__} fcn_resnet50"
    agree("model fcn_resnet50", name, ours["logits"], theirs["out"], 1e-4)
    agree("model fcn_resnet50 auxiliary", name, ours["aux/backbone"], theirs["aux"], 1e-4)


class Twin(nn.Module):
    """FCN-8s of width 8 from the layer table: dense learned up-sampling, Caffe's pooling and crops."""

    def __init__(self, classes):
        super().__init__()
        channels, last = ((8, 8), (16, 16), (32,) * 3, (64,) * 3, (64,) * 3), 3
        for i, stage in enumerate(channels, start=1):
            for j, width in enumerate(stage, start=1):
                pad = 100 if i == j == 1 else 1
                self.add_module(f"conv{i}_{j}", nn.Conv2d(last, width, 3, padding=pad))
                last = width
        self.fc6, self.fc7 = nn.Conv2d(last, 32, 7), nn.Conv2d(32, 32, 1)
        self.score_fr, self.score_pool4 = nn.Conv2d(32, classes, 1), nn.Conv2d(64, classes, 1)
        self.score_pool3 = nn.Conv2d(32, classes, 1)
        self.units = [len(stage) for stage in channels]
        for name, k in (("upscore2", 4), ("upscore_pool4", 4), ("upscore8", 16)):
            self.add_module(name, nn.ConvTranspose2d(classes, classes, k, k // 2, bias=False))

    def forward(self, image):
        x, pools = image, []
        for i, units in enumerate(self.units, start=1):
            for j in range(1, units + 1):
                x = F.relu(getattr(self, f"conv{i}_{j}")(x))
            x = F.max_pool2d(x, 2, 2, ceil_mode=True)
            pools.append(x)
        x = self.upscore2(self.score_fr(F.relu(self.fc7(F.relu(self.fc6(x))))))
        x = x + self.score_pool4(pools[3])[:, :, 5 : 5 + x.shape[2], 5 : 5 + x.shape[3]]
        x = self.upscore_pool4(x)
        x = x + self.score_pool3(pools[2])[:, :, 9 : 9 + x.shape[2], 9 : 9 + x.shape[3]]
        return self.upscore8(x)[:, :, 31 : 31 + image.shape[2], 31 : 31 + image.shape[3]]


def test_fcn8s():
    torch.manual_seed(0)
    network = randomize(Twin(5))
    options = {"backbone_options": {"width": 8}, "fc_channels": 32, "deconvolution": "dense"}
    module = fcn.build(num_classes=5, variant="8s", **options)
    rules = [(r"^conv(\d)_(\d)$", r"backbone/stage\1/conv\2"), (r"^(fc\d)$", r"head/\1")]
    variables = to_variables(network.state_dict(), rules, template_of(module))
    image = torch_image(1, 3, 53, 70)
    with torch.no_grad():
        theirs = network(image)
    ours = jax.jit(lambda v, x: module.apply(v, x, False)["logits"])(variables, channels_last(image))
    agree("model fcn 8s", "twin of the layer table", ours, theirs, 1e-4)


class AlexNetTwin(nn.Module):
    """FCN-AlexNet of an eighth of its width from the layer table: windows counted up, response norms, kernel 63."""

    def __init__(self, classes):
        super().__init__()
        table = ((3, 12, 11, 4, 100, 1), (12, 32, 5, 1, 2, 2), (32, 48, 3, 1, 1, 1), (48, 48, 3, 1, 1, 2))
        for i, sides in enumerate((*table, (48, 32, 3, 1, 1, 2)), start=1):
            c, n, k, stride, pad, groups = sides
            self.add_module(f"conv{i}", nn.Conv2d(c, n, k, stride, pad, groups=groups))
        self.fc6, self.fc7, self.score_fr = nn.Conv2d(32, 24, 6), nn.Conv2d(24, 24, 1), nn.Conv2d(24, classes, 1)
        self.upscore32 = nn.ConvTranspose2d(classes, classes, 63, 32, bias=False)

    def forward(self, image):
        x, norm = image, nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)
        for i in range(1, 6):
            x = F.relu(getattr(self, f"conv{i}")(x))
            x = F.max_pool2d(x, 3, 2, ceil_mode=True) if i in (1, 2, 5) else x
            x = norm(x) if i in (1, 2) else x
        x = self.score_fr(F.relu(self.fc7(F.relu(self.fc6(x)))))
        return self.upscore32(x)[:, :, 18 : 18 + image.shape[2], 18 : 18 + image.shape[3]]


def test_fcn_alexnet():
    torch.manual_seed(0)
    network = AlexNetTwin(5)
    options = {"backbone_options": {"width": 12}, "fc_channels": 24, "deconvolution": "dense"}
    module = fcn.build(num_classes=5, variant="32s", backbone="alexnet", **options)
    rules = [(r"^conv(\d)$", r"backbone/conv\1"), (r"^(fc\d)$", r"head/\1")]
    variables = to_variables(network.state_dict(), rules, template_of(module))
    # Values as large as Caffe's: the response norms divide by more than a rounding error.
    image = 100 * torch_image(1, 3, 53, 70)
    with torch.no_grad():
        theirs = network(image)
    ours = jax.jit(lambda v, x: module.apply(v, x, False)["logits"])(variables, channels_last(image))
    agree("model fcn alexnet", "twin of the layer table", ours, theirs, 1e-4)
