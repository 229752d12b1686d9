"""The dilated networks of the VGG era against twins in PyTorch, written from the papers' layer tables."""

import jax
import numpy as np
import pytest

from jaxseg.models import deeplab_v1, deeplab_v2, dilation
from tests.references.record import record_difference
from tests.references.torch_variables import randomize, relative_difference, template_of, to_variables

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional
CLASSES, WIDTH, FC = 4, 8, 16
TWIN = f"PyTorch {torch.__version__} twin from the layer table"
# The twins' modules carry our names.
RULES = [(r"\.", "/")]


def compare(name, module, network, image, theirs):
    variables = to_variables(network.state_dict(), RULES, template_of(module, (33, 33)))
    x = np.moveaxis(image.numpy(), 1, -1)
    ours = jax.jit(lambda v, x: module.apply(v, x, False)["logits"])(variables, x)
    difference = relative_difference(ours, theirs)
    record_difference(f"model {name}", TWIN, difference)
    assert difference < 1e-4


def picture(height=61, width=75):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


class VGG(nn.Module):
    """Sixteen layers less three; `pool` after the stages, `rates` of their convolutions, `padded` or not."""

    def __init__(self, rates, padded, pools):
        super().__init__()
        self.pools, c = pools, 3
        for i, (units, multiple) in enumerate(((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))):
            stage = nn.Module()
            for unit in range(units):
                n, rate = WIDTH * multiple, rates[i]
                setattr(stage, f"conv{unit + 1}", nn.Conv2d(c, n, 3, padding=rate if padded else 0, dilation=rate))
                c = n
            setattr(self, f"stage{i + 1}", stage)

    def forward(self, x):
        found = []
        for i, pool in enumerate(self.pools):
            for conv in getattr(self, f"stage{i + 1}").children():
                x = F.relu(conv(x))
            x = pool(x)
            found.append(x)
        return found


class FullyConnected(nn.Module):
    """fc6 with ReLU, fc7 with ReLU."""

    def __init__(self, c, kernel_size, padding, rate):
        super().__init__()
        self.fc6 = nn.Conv2d(c, FC, kernel_size, padding=padding, dilation=rate)
        self.fc7 = nn.Conv2d(FC, FC, 1)

    def forward(self, x):
        return F.relu(self.fc7(F.relu(self.fc6(x))))


class DilationTwin(nn.Module):
    def __init__(self, rates, multiples, pad_first):
        super().__init__()
        half = nn.MaxPool2d(2, 2)
        self.backbone = VGG((1, 1, 1, 1, 2), False, (half, half, half, nn.Identity(), nn.Identity()))
        self.fc = FullyConnected(8 * WIDTH, 7, 0, 4)
        self.classifier = nn.Conv2d(FC, CLASSES, 1)
        self.context, c = nn.Module(), CLASSES
        for i, (rate, multiple) in enumerate(zip(rates, multiples, strict=True)):
            padding = rate if not pad_first else sum(rates) if i == 0 else 0
            conv = nn.Conv2d(c, CLASSES * multiple, 3, padding=padding, dilation=rate)
            c = CLASSES * multiple
            setattr(self.context, f"conv{i + 1}", conv)
        self.context.classifier = nn.Conv2d(c, CLASSES, 1)

    def forward(self, x):
        x = self.classifier(self.fc(self.backbone(x)[-1]))
        *convs, last = self.context.children()
        for conv in convs:
            x = F.relu(conv(x))
        return last(x)


def mirrored(image, counts):
    pads = [(0, 0), (0, 0), *((186, 186 + 8 * k - n) for n, k in zip(image.shape[2:], counts, strict=True))]
    return torch.from_numpy(np.pad(image.numpy(), pads, mode="reflect"))


def grow(network):
    """Larger weights: PyTorch's own let the signal die within a dozen layers."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 2
    return network


@pytest.mark.parametrize("context", ["basic", "large"])
def test_dilation(context):
    torch.manual_seed(0)
    first = context == "large"
    multiples = (2, 2, 4, 8, 16, 32, 32) if first else (1,) * 7
    network = grow(DilationTwin((1, 1, 2, 4, 8, 16, 1), multiples, first))
    image = picture()
    height, width = image.shape[2:]
    with torch.no_grad():
        probabilities = torch.softmax(network(mirrored(image, [(n - 1) // 8 + 2 for n in (height, width)])), 1)
        y, x = torch.arange(height)[:, None], torch.arange(width)[None]
        t, s = (y % 8) / 8, (x % 8) / 8

        def at(i, j):
            return probabilities[:, :, y // 8 + i, x // 8 + j]

        mixed = (1 - t) * ((1 - s) * at(0, 0) + s * at(0, 1)) + t * ((1 - s) * at(1, 0) + s * at(1, 1))
    options = {"context": context, "context_padding": "first" if first else "per_layer"}
    module = dilation.build(
        num_classes=CLASSES, backbone_options={"width": WIDTH}, fc_channels=FC, dropout_rate=0.0, **options
    )
    compare(f"dilation {context}", module, network, image, torch.log(mixed))


def test_dilation10_with_its_deconvolution():
    torch.manual_seed(0)
    network = grow(DilationTwin((1, 1, 2, 4, 8, 16, 32, 64, 1), (1,) * 9, False))
    image = picture(64, 80)
    hat = 1 - (torch.arange(16) - 7.5).abs() / 8
    kernel = (hat[:, None] * hat).expand(CLASSES, 1, 16, 16)
    with torch.no_grad():
        low = network(mirrored(image, (8, 10)))
        theirs = F.conv_transpose2d(low, kernel, stride=8, padding=4, groups=CLASSES)
    module = dilation.build(
        num_classes=CLASSES,
        backbone_options={"width": WIDTH},
        fc_channels=FC,
        context_layers=10,
        upsampling="deconvolution",
    )
    compare("dilation 10 layers", module, network, image, theirs)


def small_pools():
    """DeepLab's: three halve, two keep the size."""
    pools = [nn.MaxPool2d(3, stride, 1, ceil_mode=True) for stride in (2, 2, 2, 1, 1)]
    return VGG((1, 1, 1, 1, 2), True, pools)


def zoomed(x, factor, size):
    """Corners aligned, at a whole factor; cut, or the border repeated."""
    sides = [factor * (n - 1) + 1 for n in x.shape[2:]]
    x = F.interpolate(x, sides, mode="bilinear", align_corners=True)[:, :, : size[0], : size[1]]
    return F.pad(x, (0, size[1] - x.shape[3], 0, size[0] - x.shape[2]), mode="replicate")


class DeepLabV1Twin(nn.Module):
    def __init__(self, kernel_size, rate, mean, scales):
        super().__init__()
        self.backbone, self.mean, self.scales = small_pools(), mean, scales
        self.fc = FullyConnected(8 * WIDTH, kernel_size, (kernel_size - 1) * rate // 2, rate)
        self.classifier = nn.Conv2d(FC, CLASSES, 1)
        for name, c in zip(scales, (3, WIDTH, 2 * WIDTH, 4 * WIDTH, 8 * WIDTH), strict=False):
            branch = nn.Module()
            branch.conv1, branch.conv2 = nn.Conv2d(c, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
            branch.classifier = nn.Conv2d(6, CLASSES, 1)
            setattr(self, f"scale_{name}", branch)

    def forward(self, image):
        found = self.backbone(image)
        x = F.avg_pool2d(found[-1], 3, 1, 1) if self.mean else found[-1]
        total = zoomed(self.classifier(self.fc(x)), 8, image.shape[2:])
        for name, tap, factor in zip(self.scales, [image, *found[:4]], (1, 2, 4, 8, 8), strict=False):
            branch = getattr(self, f"scale_{name}")
            scores = branch.classifier(F.relu(branch.conv2(F.relu(branch.conv1(tap)))))
            total = total + zoomed(scores, factor, image.shape[2:])
        return total


@pytest.mark.parametrize(
    ("variant", "kernel_size", "rate", "scales"),
    [("large_fov", 3, 12, ("image", "pool1", "pool2", "pool3", "pool4")), ("7x7", 7, 4, ()), ("4x4", 4, 4, ())],
)
def test_deeplab_v1(variant, kernel_size, rate, scales):
    torch.manual_seed(0)
    network = grow(DeepLabV1Twin(kernel_size, rate, variant == "large_fov", scales))
    module = deeplab_v1.build(
        num_classes=CLASSES,
        backbone_options={"width": WIDTH},
        variant=variant,
        fc_channels=FC,
        multi_scale=bool(scales),
        scale_channels=6,
    )
    for height, width in ((61, 78), (65, 73))[: 2 if scales else 1]:
        image = picture(height, width)
        with torch.no_grad():
            theirs = network(image)
        compare(f"deeplab_v1 {variant} {height}x{width}", module, network, image, theirs)


class ConvNorm(nn.Module):
    def __init__(self, c, n, kernel_size, stride=1, rate=1):
        super().__init__()
        self.conv = nn.Conv2d(c, n, kernel_size, stride, rate * (kernel_size // 2), rate, bias=False)
        self.norm = nn.BatchNorm2d(n)

    def forward(self, x):
        return self.norm(self.conv(x))


class Unit(nn.Module):
    """Caffe's bottleneck: the stride in the first 1x1."""

    def __init__(self, c, n, stride, rate, project):
        super().__init__()
        self.conv1, self.conv2 = ConvNorm(c, n, 1, stride), ConvNorm(n, n, 3, rate=rate)
        self.conv3 = ConvNorm(n, 4 * n, 1)
        self.shortcut = ConvNorm(c, 4 * n, 1, stride) if project else nn.Identity()

    def forward(self, x):
        y = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet50(nn.Module):
    """Output stride 8: rate 2 in all of the third stage, 4 in all of the fourth; the stem's pooling counts up."""

    def __init__(self):
        super().__init__()
        self.stem, c = ConvNorm(3, WIDTH, 7, 2), WIDTH
        for stage, (units, stride, rate) in enumerate(((3, 1, 1), (4, 2, 1), (6, 1, 2), (3, 1, 4))):
            for i in range(units):
                n = WIDTH * 2**stage
                setattr(self, f"stage{stage + 1}_unit{i + 1}", Unit(c, n, stride if i == 0 else 1, rate, i == 0))
                c = 4 * n

    def forward(self, x):
        stem, *units = self.children()
        x = F.max_pool2d(F.relu(stem(x)), 3, 2, 1, ceil_mode=True)
        for unit in units:
            x = unit(x)
        return [x]


class DeepLabV2Twin(nn.Module):
    def __init__(self, backbone, c, rates, fully_connected, scales, corners):
        super().__init__()
        self.backbone, self.aspp, self.rates = backbone, nn.Module(), rates
        self.scales, self.corners, self.fully_connected = scales, corners, fully_connected
        for i, rate in enumerate(rates, start=1):
            if fully_connected:
                setattr(self.aspp, f"branch{i}", FullyConnected(c, 3, rate, rate))
                classifier = nn.Conv2d(FC, CLASSES, 1)
            else:
                classifier = nn.Conv2d(c, CLASSES, 3, padding=rate, dilation=rate)
            setattr(self.aspp, f"classifier{i}", classifier)

    def scores(self, image):
        x, total = self.backbone(image)[-1], 0
        for i in range(1, len(self.rates) + 1):
            branch = getattr(self.aspp, f"branch{i}") if self.fully_connected else nn.Identity()
            total = total + getattr(self.aspp, f"classifier{i}")(branch(x))
        return total

    def forward(self, image):
        def resized(x, size):
            return F.interpolate(x, size, mode="bilinear", align_corners=self.corners)

        low = self.scores(image)
        for scale in self.scales:
            sides = [round((n - 1) * scale) + 1 if self.corners else int(n * scale) for n in image.shape[2:]]
            low = torch.maximum(low, resized(self.scores(resized(image, sides)), low.shape[2:]))
        return zoomed(low, 8, image.shape[2:]) if self.corners else resized(low, image.shape[2:])


@pytest.mark.parametrize(
    ("backbone", "alignment"), [("resnet50", "align_corners"), ("resnet50", "half_pixel"), ("vgg16", "align_corners")]
)
def test_deeplab_v2(backbone, alignment):
    torch.manual_seed(0)
    vgg, rates, corners = backbone == "vgg16", (6, 12, 18, 24), alignment == "align_corners"
    scales = () if vgg else (0.75, 0.5)
    trunk, c = (small_pools(), 8 * WIDTH) if vgg else (ResNet50(), 32 * WIDTH)
    network = randomize(DeepLabV2Twin(trunk, c, rates, vgg, scales, corners))
    module = deeplab_v2.build(
        num_classes=CLASSES,
        backbone=backbone,
        backbone_options={"width": WIDTH},
        fc_channels=FC if vgg else 0,
        scales=(1.0, *scales),
        alignment=alignment,
    )
    image = picture()
    with torch.no_grad():
        theirs = (grow(network) if vgg else network)(image)
    compare(f"deeplab_v2 {backbone} {alignment}", module, network, image, theirs)
