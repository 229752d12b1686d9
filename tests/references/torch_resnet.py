"""ResNet-50 in PyTorch from the paper's layer table, as a trunk of any width; its modules carry jaxseg's names."""

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


class ResNet50(nn.Module):
    """Stages of 3, 4, 6 and 3 units; `deep` is the stem of three 3x3 convolutions, `dilated` output stride 8.

    Dilated, all of the third stage has rate 2 and all of the fourth rate 4.
    """

    def __init__(self, width, *, deep=False, dilated=False):
        super().__init__()
        stem = ((3, width, 3, 2), (width, width, 3), (width, 2 * width, 3)) if deep else ((3, width, 7, 2),)
        for i, sides in enumerate(stem, start=1):
            setattr(self, f"stem{i}" if deep else "stem", ConvNorm(*sides))
        self.stem_size, c = len(stem), stem[-1][1]
        for stage, units in enumerate((3, 4, 6, 3)):
            stride, rate = (1 if stage == 0 else 2), 1
            if dilated and stage > 1:
                stride, rate = 1, 2 ** (stage - 1)
            for i in range(units):
                n = width * 2**stage
                unit = Bottleneck(c, n, stride if i == 0 else 1, rate, i == 0)
                setattr(self, f"stage{stage + 1}_unit{i + 1}", unit)
                c = 4 * n

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
