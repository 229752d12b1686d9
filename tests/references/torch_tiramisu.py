"""FC-DenseNet (arXiv 1611.09326) in PyTorch from the paper's layer table; its modules carry jaxseg's names.

`to_variables(network.state_dict(), [(r"\\.", "/")], template)` gives the variables of `jaxseg.models.tiramisu`.
"""

import torch
from torch import nn


class NormConv(nn.Module):
    """Batch norm, ReLU, convolution, dropout."""

    def __init__(self, c, n, kernel_size, dropout_rate, epsilon):
        super().__init__()
        self.norm = nn.BatchNorm2d(c, epsilon)
        self.conv = nn.Conv2d(c, n, kernel_size, padding=kernel_size // 2)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, x):
        return self.dropout(self.conv(torch.relu(self.norm(x))))


class DenseBlock(nn.Module):
    """`count` layers on a growing stack; gives the stack and the part of it that is new."""

    def __init__(self, c, count, growth_rate, *options):
        super().__init__()
        for i in range(count):
            setattr(self, f"layer{i + 1}", NormConv(c + i * growth_rate, growth_rate, 3, *options))

    def forward(self, x):
        stack = x
        for layer in self.children():
            stack = torch.cat([stack, layer(stack)], 1)
        return stack, stack[:, x.shape[1] :]


class Tiramisu(nn.Module):
    """See `build`."""

    def __init__(self, num_classes, layers, growth_rate, first_channels, *options):
        super().__init__()
        self.levels, stacks, c = len(layers) // 2, [], first_channels
        self.first = nn.Conv2d(3, c, 3, padding=1)
        for i in range(self.levels):
            setattr(self, f"down{i + 1}", DenseBlock(c, layers[i], growth_rate, *options))
            c += layers[i] * growth_rate
            stacks.append(c)
            setattr(self, f"transition_down{i + 1}", NormConv(c, c, 1, *options))
        self.bottleneck = DenseBlock(c, layers[self.levels], growth_rate, *options)
        for i in range(self.levels):
            new, count = layers[self.levels + i] * growth_rate, layers[self.levels + 1 + i]
            setattr(self, f"transition_up{i + 1}", nn.ConvTranspose2d(new, new, 3, 2))
            c = new + stacks.pop()
            setattr(self, f"up{i + 1}", DenseBlock(c, count, growth_rate, *options))
            c += count * growth_rate
        self.classifier = nn.Conv2d(c, num_classes, 1)

    def forward(self, image):
        """`[b, 3, h, w]` -> logits `[b, classes, h, w]`."""
        x, skips = self.first(image), []
        for i in range(1, self.levels + 1):
            x, _ = getattr(self, f"down{i}")(x)
            skips.append(x)
            x = nn.functional.max_pool2d(getattr(self, f"transition_down{i}")(x), 2)
        x, new = self.bottleneck(x)
        for i in range(1, self.levels + 1):
            skip = skips.pop()
            grown = getattr(self, f"transition_up{i}")(new)[:, :, : skip.shape[2], : skip.shape[3]]
            x, new = getattr(self, f"up{i}")(torch.cat([grown, skip], 1))
        return self.classifier(x)


def build(
    *,
    num_classes: int,
    layers: tuple[int, ...] = (4, 5, 7, 10, 12, 15, 12, 10, 7, 5, 4),
    growth_rate: int = 16,
    first_channels: int = 48,
    dropout_rate: float = 0.2,
    norm_epsilon: float = 1e-4,
) -> nn.Module:
    """FC-DenseNet103, or with other layers and growth: 56 is `(4,) * 11` and 12, 67 `(5,) * 11` and 16."""
    return Tiramisu(num_classes, layers, growth_rate, first_channels, dropout_rate, norm_epsilon)
