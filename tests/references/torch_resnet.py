"""ResNet-18 and 50 in PyTorch from the paper's layer tables, trunks of any width; modules carry jaxseg's names."""

import torch
from torch import nn


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, and ReLU unless it is linear."""

    def __init__(self, c, n, kernel_size=1, stride=1, rate=1, linear=False):
        super().__init__()
        self.conv = nn.Conv2d(c, n, kernel_size, stride, rate * (kernel_size // 2), rate, bias=False)
        self.norm = nn.BatchNorm2d(n)
        self.linear = linear

    def forward(self, x):
        x = self.norm(self.conv(x))
        return x if self.linear else torch.relu(x)


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride and the rate, 1x1 to four times the channels."""

    def __init__(self, c, n, stride, rate, project):
        super().__init__()
        self.conv1, self.conv2 = ConvNorm(c, n), ConvNorm(n, n, 3, stride, rate)
        self.conv3 = ConvNorm(n, 4 * n, linear=True)
        self.shortcut = ConvNorm(c, 4 * n, stride=stride, linear=True) if project else nn.Identity()

    def forward(self, x):
        return torch.relu(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x))


class Basic(nn.Module):
    """Two 3x3, the first with the stride, both with the rate."""

    def __init__(self, c, n, stride, rate, project):
        super().__init__()
        self.conv1, self.conv2 = ConvNorm(c, n, 3, stride, rate), ConvNorm(n, n, 3, rate=rate, linear=True)
        self.shortcut = ConvNorm(c, n, stride=stride, linear=True) if project else nn.Identity()

    def forward(self, x):
        return torch.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class ResNet(nn.Module):
    """Bottlenecks (depth 50) or simple units (18); `channels` are those of its four stages.

    `deep` is the stem of three 3x3 convolutions. `dilated` is output stride 8: all of the third stage has rate 2 and
    all of the fourth rate 4.
    """

    def __init__(self, width, *, depth=50, deep=False, dilated=False):
        super().__init__()
        stem = ((3, width, 3, 2), (width, width, 3), (width, 2 * width, 3)) if deep else ((3, width, 7, 2),)
        for i, sides in enumerate(stem, start=1):
            setattr(self, f"stem{i}" if deep else "stem", ConvNorm(*sides))
        self.stem_size, c = len(stem), stem[-1][1]
        kind, growth, counts = (Bottleneck, 4, (3, 4, 6, 3)) if depth == 50 else (Basic, 1, (2, 2, 2, 2))
        self.channels = [growth * width * 2**stage for stage in range(4)]
        for stage, units in enumerate(counts):
            stride, rate = (1 if stage == 0 else 2), 1
            if dilated and stage > 1:
                stride, rate = 1, 2 ** (stage - 1)
            for i in range(units):
                n = width * 2**stage
                project = i == 0 and (stride > 1 or c != growth * n or stage > 0)
                unit = kind(c, n, stride if i == 0 else 1, rate, project)
                setattr(self, f"stage{stage + 1}_unit{i + 1}", unit)
                c = growth * n

    def forward(self, image):
        """The four stages' results."""
        x, found = image, {}
        for i, (name, part) in enumerate(self.named_children(), start=1):
            x = part(x)
            if i == self.stem_size:
                x = nn.functional.max_pool2d(x, 3, 2, 1)
            if name.startswith("stage"):
                found[name[5]] = x
        return list(found.values())
