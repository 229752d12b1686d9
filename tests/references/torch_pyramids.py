"""PSPNet, GCN, RefineNet and UPerNet in PyTorch from the papers' layer tables; their modules carry jaxseg's names."""

import torch
from torch import nn
from torch.nn import functional as F

from tests.references.torch_resnet import ConvNorm, ResNet


def resized(x, like, corners):
    """Bilinear, to the size of `like`."""
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=corners)


class Pyramid(nn.Module):
    """The input and its averages over 1, 2 x 2, 3 x 3 and 6 x 6 bins."""

    def __init__(self, c, n, corners, resize_first):
        super().__init__()
        self.corners, self.resize_first = corners, resize_first
        for bins in (1, 2, 3, 6):
            setattr(self, f"level{bins}", ConvNorm(c, n))

    def forward(self, x):
        found = [x]
        for bins in (1, 2, 3, 6):
            level, pooled = getattr(self, f"level{bins}"), F.adaptive_avg_pool2d(x, bins)
            if self.resize_first:
                found.append(level(resized(pooled, x, self.corners)))
            else:
                found.append(resized(level(pooled), x, self.corners))
        return torch.cat(found, 1)


class Auxiliary(nn.Module):
    """3x3 convolution and classifier."""

    def __init__(self, c, n, classes):
        super().__init__()
        self.conv, self.classifier = ConvNorm(c, n, 3), nn.Conv2d(n, classes, 1)

    def forward(self, x):
        return self.classifier(self.conv(x))


class PSPNet(nn.Module):
    """Output stride 8, `n` channels a level, auxiliary head of `n` channels on the third stage."""

    def __init__(self, classes, width, n, depth=50):
        super().__init__()
        self.backbone = ResNet(width, depth=depth, deep=True, dilated=True)
        *_, third, fourth = self.backbone.channels
        self.pooling = Pyramid(fourth, n, True, False)
        self.fusion, self.classifier = ConvNorm(fourth + 4 * n, 2 * n, 3), nn.Conv2d(2 * n, classes, 1)
        self.aux = Auxiliary(third, n, classes)

    def forward(self, image):
        *_, third, fourth = self.backbone(image)
        scores = self.classifier(self.fusion(self.pooling(fourth)))
        return resized(scores, image, True), resized(self.aux(third), image, True)


class UPerNet(nn.Module):
    """The head for objects, `n` channels everywhere."""

    def __init__(self, classes, width, n, depth=50):
        super().__init__()
        self.backbone = ResNet(width, depth=depth, deep=True)
        *fine, deepest = self.backbone.channels
        self.pooling = Pyramid(deepest, n, False, True)
        self.bottleneck, self.pyramid = ConvNorm(deepest + 4 * n, n, 3), nn.Module()
        for i, c in enumerate(fine, start=1):
            setattr(self.pyramid, f"lateral{i}", ConvNorm(c, n))
            setattr(self.pyramid, f"smooth{i}", ConvNorm(n, n, 3))
        self.fusion, self.classifier = ConvNorm(4 * n, n, 3), nn.Conv2d(n, classes, 1)

    def forward(self, image):
        *stages, deepest = self.backbone(image)
        above = self.bottleneck(self.pooling(deepest))
        maps = [above]
        for i in (3, 2, 1):
            lateral = getattr(self.pyramid, f"lateral{i}")(stages[i - 1])
            above = lateral + resized(above, lateral, False)
            maps.insert(0, getattr(self.pyramid, f"smooth{i}")(above))
        fused = self.fusion(torch.cat([resized(m, maps[0], False) for m in maps], 1))
        return resized(self.classifier(fused), image, False)


class GlobalConvolution(nn.Module):
    """k x 1 then 1 x k, and 1 x k then k x 1, summed."""

    def __init__(self, c, n, k):
        super().__init__()
        tall, wide = {"kernel_size": (k, 1), "padding": (k // 2, 0)}, {"kernel_size": (1, k), "padding": (0, k // 2)}
        self.left1, self.left2 = nn.Conv2d(c, n, **tall), nn.Conv2d(n, n, **wide)
        self.right1, self.right2 = nn.Conv2d(c, n, **wide), nn.Conv2d(n, n, **tall)

    def forward(self, x):
        return self.left2(self.left1(x)) + self.right2(self.right1(x))


class BoundaryRefinement(nn.Module):
    """A residual unit on scores."""

    def __init__(self, n):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(n, n, 3, padding=1), nn.Conv2d(n, n, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(torch.relu(self.conv1(x)))


class GCN(nn.Module):
    """Four global convolutions, nine refinements; every resize with aligned corners."""

    def __init__(self, classes, width, k, depth=50):
        super().__init__()
        self.backbone = ResNet(width, depth=depth)
        for i, c in enumerate(self.backbone.channels, start=1):
            setattr(self, f"global{i}", GlobalConvolution(c, classes, k))
            setattr(self, f"refine{i}", BoundaryRefinement(classes))
            if i < 4:
                setattr(self, f"refine_sum{i}", BoundaryRefinement(classes))
        self.refine_half, self.refine_full = BoundaryRefinement(classes), BoundaryRefinement(classes)

    def forward(self, image):
        stages = self.backbone(image)
        total = self.refine4(self.global4(stages[3]))
        for i in (3, 2, 1):
            scores = getattr(self, f"refine{i}")(getattr(self, f"global{i}")(stages[i - 1]))
            total = getattr(self, f"refine_sum{i}")(scores + resized(total, scores, True))
        half = image[:, :, ::2, ::2]
        return self.refine_full(resized(self.refine_half(resized(total, half, True)), image, True))


def conv3(c, n, bias=False):
    """3x3 with padding."""
    return nn.Conv2d(c, n, 3, padding=1, bias=bias)


class Residual(nn.Module):
    """Units of two ReLUs and convolutions, the first with bias."""

    def __init__(self, n, units):
        super().__init__()
        self.units = units
        for i in range(1, units + 1):
            setattr(self, f"unit{i}_conv1", conv3(n, n, True))
            setattr(self, f"unit{i}_conv2", conv3(n, n))

    def forward(self, x):
        for i in range(1, self.units + 1):
            y = torch.relu(getattr(self, f"unit{i}_conv1")(torch.relu(x)))
            x = x + getattr(self, f"unit{i}_conv2")(y)
        return x


class RefineBlock(nn.Module):
    """Adaption, fusion with the coarser block (none for the coarsest), chained pooling, residual units."""

    def __init__(self, c, n, coarse, links, conv_first, units):
        super().__init__()
        self.entry, self.adapt, self.conv_first = conv3(c, n), Residual(n, 2), conv_first
        if coarse:
            self.fuse_fine, self.fuse_coarse = conv3(n, n), conv3(coarse, n)
        self.pooling, self.output = (
            nn.ModuleDict({f"conv{i + 1}": conv3(n, n) for i in range(links)}),
            Residual(n, units),
        )

    def forward(self, level, coarse):
        x = self.adapt(self.entry(level))
        if coarse is not None:
            x = self.fuse_fine(x)
            x = x + resized(self.fuse_coarse(coarse), x, True)
        x = link = torch.relu(x)
        for conv in self.pooling.values():
            if self.conv_first:
                link = F.max_pool2d(conv(link), 5, 1, 2)
            else:
                link = conv(F.max_pool2d(link, 5, 1, 2))
            x = x + link
        return self.output(x)


class RefineNet(nn.Module):
    """Blocks of n, n, n and 2 n channels, from fine to coarse."""

    def __init__(self, classes, width, n, links, conv_first, units, depth=50):
        super().__init__()
        self.backbone = ResNet(width, depth=depth)
        for i, c in enumerate(self.backbone.channels, start=1):
            coarse = {3: 2 * n, 4: 0}.get(i, n)
            block = RefineBlock(c, 2 * n if i == 4 else n, coarse, links, conv_first, units[i - 1])
            setattr(self, f"block{i}", block)
        self.classifier = conv3(n, classes, True)

    def forward(self, image):
        stages, x = self.backbone(image), None
        for i in (4, 3, 2, 1):
            x = getattr(self, f"block{i}")(stages[i - 1], x)
        return resized(self.classifier(x), image, True)
