"""FC-DenseNet (arXiv 1611.09326) in plain PyTorch, written from the paper's layer table, to take turns with ours."""

import importlib
from collections.abc import Sequence
from typing import Any


def build(
    classes: int, *, layers: Sequence[int], growth_rate: int, first_channels: int = 48, dropout_rate: float = 0.2
) -> Any:
    """The network as nn.Module, NCHW images to logits of their size.

    Args:
      classes: of the logits.
      layers: of each dense block: down, bottleneck, up.
      growth_rate: feature maps that a layer adds.
      first_channels: of the first convolution.
      dropout_rate: after every convolution of a layer or transition.
    """
    torch: Any = importlib.import_module("torch")
    nn, levels = torch.nn, len(layers) // 2
    Module: Any = nn.Module

    class Block(Module):
        """Each layer sees the input and what the layers before it made; gives the stack and what is new."""

        def __init__(self, channels: int, count: int) -> None:
            super().__init__()
            widths = [channels + i * growth_rate for i in range(count)]
            self.layers = nn.ModuleList(norm_conv(nn, width, growth_rate, 3, dropout_rate) for width in widths)

        def forward(self, x: Any) -> Any:
            made: list[Any] = []
            for each in self.layers:
                made.append(each(torch.cat([x, *made], 1)))
            new = torch.cat(made, 1)
            return torch.cat([x, new], 1), new

    class Tiramisu(Module):
        """Down, bottleneck, up."""

        def __init__(self) -> None:
            super().__init__()
            channels, skips = first_channels, []
            self.first = nn.Conv2d(3, channels, 3, padding=1)
            self.down, self.shrink, self.grow, self.up = (nn.ModuleList() for _ in range(4))
            for count in layers[:levels]:
                self.down.append(Block(channels, count))
                channels += count * growth_rate
                skips.append(channels)
                shrink = norm_conv(nn, channels, channels, 1, dropout_rate)
                self.shrink.append(nn.Sequential(shrink, nn.MaxPool2d(2)))
            self.bottleneck = Block(channels, layers[levels])
            new = layers[levels] * growth_rate
            for skip, count in zip(reversed(skips), layers[levels + 1 :], strict=True):
                self.grow.append(nn.ConvTranspose2d(new, new, 3, stride=2))
                self.up.append(Block(new + skip, count))
                channels, new = new + skip + count * growth_rate, count * growth_rate
            self.classifier = nn.Conv2d(channels, classes, 1)

        def forward(self, x: Any) -> Any:
            x, skips = self.first(x), []
            for block, shrink in zip(self.down, self.shrink, strict=True):
                x, _ = block(x)
                skips.append(x)
                x = shrink(x)
            x, new = self.bottleneck(x)
            for grow, block, skip in zip(self.grow, self.up, reversed(skips), strict=True):
                # One row and column more than twice the size: cropped to the skip.
                grown = grow(new)[:, :, : skip.shape[2], : skip.shape[3]]
                x, new = block(torch.cat([grown, skip], 1))
            return self.classifier(x)

    return Tiramisu()


def norm_conv(nn: Any, channels: int, features: int, kernel_size: int, dropout_rate: float) -> Any:
    """Batch norm, ReLU, convolution with bias, dropout: the paper's layer. Args: nn: torch.nn; the rest as `build`."""
    conv = nn.Conv2d(channels, features, kernel_size, padding=kernel_size // 2)
    norm, relu = nn.BatchNorm2d(channels, eps=1e-4), nn.ReLU(inplace=True)
    return nn.Sequential(norm, relu, conv, nn.Dropout(dropout_rate, inplace=True))
