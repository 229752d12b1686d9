"""DeepLab v2: atrous convolution, atrous spatial pyramid pooling, fully connected CRFs (Chen et al., arXiv 1606.00915).

| network    | trunk (output stride 8)             | each branch of the pyramid                       |
|------------|-------------------------------------|--------------------------------------------------|
| ResNet-101 | stride in the first 1x1, rates 2, 4 | 3x3 classifier                                   |
| VGG-16     | pooling 3x3, rate 2 in stage 5      | fc6 3x3 and fc7 1x1, 1024 channels; 1x1 classifier |

Rates of the 3x3 convolutions: ASPP-L 6, 12, 18, 24; ASPP-S (VGG-16) 2, 4, 8, 12.

The branches' scores are summed: no concatenation, batch norm, 1x1 branch or image pooling, which came with v3. One
branch of rate 12 is LargeFOV. 321 pixels become 161, 81, 41.

Multi-scale (`scales=(1.0, 0.75, 0.5)`): the same network on the shrunk images; the scores are enlarged to the first
scale's and fused by their maximum. Training has a loss on the fused scores and one on each scale's, of the same weight
(`loss_aux_weight` 1): `aux/scale100`, `aux/scale75`, `aux/scale50`.

Variants: `alignment="align_corners"` is Caffe's, with the scores enlarged on the grid that the strides leave;
"half_pixel" that of the widely used PyTorch port, which also rounds the scales' sizes down.
Differences from the paper: the losses are at full size, where the authors shrink the labels. VGG-16's LargeFOV has no
mean behind pool5 as it has in deeplab_v1. The CRF is not part of the network.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.errors import JaxsegError
from jaxseg.core.types import Outputs
from jaxseg.layers.conv_norm import Conv
from jaxseg.layers.fully_connected import FullyConnectedConvs
from jaxseg.layers.heads import enlarged, rates_at, zoomed
from jaxseg.layers.image import check_image, check_output_stride
from jaxseg.layers.trunk import make_trunk, taps_of
from jaxseg.ops.resize import ALIGNMENTS, resize
from jaxseg.ops.zoom import zoom

OUTPUT_STRIDES = (8, 16, 32)
ASPP_L = (6, 12, 18, 24)
ASPP_S = (2, 4, 8, 12)
CLASSIFIER = nn.initializers.normal(0.01)
# What the paper's trunks need of the backbones; any other backbone comes as it is.
TRUNKS: dict[str, dict[str, Any]] = {
    "vgg16": {"pool_window": 3, "ceil": True},
    **{
        f"resnet{depth}": {"stride_in_1x1": True, "dilate_first_unit": True, "stem_pool": "ceil"}
        for depth in (18, 34, 50, 101, 152)
    },
}


class SummedPyramid(nn.Module):
    """Parallel branches at several rates, each with its own classifier; their scores are summed.

    Attributes:
      num_classes: channels of the scores.
      rates: of the 3x3 convolutions.
      fc_channels: of fc6 and fc7 in each branch; 0: the 3x3 convolution is the classifier itself.
      dropout_rate: behind fc6 and fc7.
    """

    num_classes: int
    rates: tuple[int, ...]
    fc_channels: int = 0
    dropout_rate: float = 0.5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[*b, h, w, c] -> [*b, h, w, classes]`, float32."""
        total: jax.Array | None = None
        for i, rate in enumerate(self.rates, start=1):
            shared: dict[str, Any] = {"use_bias": True, "kernel_init": CLASSIFIER, "name": f"classifier{i}"}
            if self.fc_channels:
                options = self.fc_channels, 3, rate, "torch", self.dropout_rate, self.dtype
                y = FullyConnectedConvs(*options, name=f"branch{i}")(x, train)
                scores = Conv(self.num_classes, **shared)(y)
            else:
                scores = Conv(self.num_classes, 3, dilation=rate, padding="torch", **shared)(x)
            total = scores if total is None else total + scores
        assert total is not None
        return total


def shrunk(length: int, scale: float, alignment: str) -> int:
    """A side at a scale: `round((n - 1) scale) + 1`, which keeps corners (321 at 0.75: 241); half_pixel floors."""
    if alignment == "half_pixel":
        return max(int(length * scale), 1)
    return int((length - 1) * scale + 0.5) + 1


class DeepLabV2(nn.Module):
    """See `build`."""

    backbone: nn.Module
    aspp: SummedPyramid
    output_stride: int
    scales: tuple[float, ...] = (1.0,)
    alignment: str = "align_corners"
    dtype: jnp.dtype = jnp.float32

    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """`[*b, h, w, 3]` -> `logits` float32 at the input's size, `low_logits`, `aux/scale..`, first taps."""
        check_image(image, model="deeplab_v2")
        size = image.shape[-3:-1]
        outputs: Outputs = {}
        fused: jax.Array | None = None
        for scale in self.scales:
            sides = [shrunk(n, scale, self.alignment) for n in size]
            x = resize(image.astype(jnp.float32), sides, alignment=self.alignment).astype(self.dtype)
            features = self.backbone(x, train)
            low = self.aspp(features[f"s{self.output_stride}"], train)
            if len(self.scales) > 1:
                outputs |= self._enlarge(f"aux/scale{round(100 * scale)}", low, sides, size)
            if fused is None:
                outputs |= taps_of(features)
                fused = low
            else:
                fused = jnp.maximum(fused, resize(low, fused.shape[-3:-1], alignment=self.alignment))
        assert fused is not None
        sides = [shrunk(n, self.scales[0], self.alignment) for n in size]
        return outputs | {"low_logits": fused} | self._enlarge("logits", fused, sides, size)

    def _enlarge(self, name: str, scores: jax.Array, sides: Sequence[int], size: Sequence[int]) -> Outputs:
        if self.alignment == "half_pixel":
            return enlarged(name, scores, size, alignment=self.alignment)
        if tuple(sides) == tuple(size):
            return zoomed(name, scores, self.output_stride, size)
        # Two enlargements, one after the other, are none that has coarse logits.
        return {name: resize(zoom(scores, self.output_stride, sides), size, alignment=self.alignment)}


def build(
    *,
    num_classes: int,
    backbone: str = "resnet101",
    backbone_options: Mapping[str, Any] | None = None,
    output_stride: int = 8,
    aspp_rates: Sequence[int] = ASPP_L,
    fc_channels: int = 0,
    scales: Sequence[float] = (1.0,),
    alignment: str = "align_corners",
    dropout_rate: float = 0.5,
    norm_momentum: float = 0.9,
    freeze_norm: bool = True,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """DeepLab v2.

    Args:
      num_classes: classes, void not counted.
      backbone: name of a module of jaxseg.backbones; "vgg16" and the ResNets take the paper's variant of them unless
        `backbone_options` say otherwise.
      backbone_options: further options of its build().
      output_stride: 8 is the paper's; 16 or 32 halve or quarter the rates, too.
      aspp_rates: of the branches at output stride 8; (12,) is LargeFOV.
      fc_channels: fc6 and fc7 in each branch (VGG-16: 1024); 0: the branch is one 3x3 classifier (ResNet).
      scales: of the image, from large to small; (1.0, 0.75, 0.5) is the paper's, and brings auxiliary logits.
      alignment: of all resizing.
      dropout_rate: behind fc6 and fc7.
      norm_momentum: of the backbone's batch norms.
      freeze_norm: running statistics in training too, as published.
      remat: recompute the backbone's blocks in the backward pass.
      dtype: of the computation; parameters and logits are float32.

    Returns:
      A module, `module.apply(variables, image, train)`.

    Raises:
      JaxsegError: unknown backbone or option, an impossible output stride, rate or scale.
    """
    check_output_stride(output_stride, allowed=OUTPUT_STRIDES, model="deeplab_v2")
    if alignment not in ALIGNMENTS:
        raise JaxsegError(f"deeplab_v2: alignment = {alignment!r} is not one of {', '.join(ALIGNMENTS)}.")
    if not aspp_rates:
        raise JaxsegError("deeplab_v2: aspp_rates = () leaves no branch; give at least one rate.")
    percents = [round(100 * scale) for scale in scales]
    if not percents or min(percents) < 1 or percents != sorted(set(percents), reverse=True):
        raise JaxsegError(f"deeplab_v2: scales = {tuple(scales)} must be positive and fall, by 0.01 at least.")
    trunk = make_trunk(
        backbone,
        backbone_options,
        output_stride=output_stride,
        norm_momentum=norm_momentum,
        freeze_norm=freeze_norm,
        remat=remat,
        dtype=dtype,
        **TRUNKS.get(backbone, {}),
    )
    rates = rates_at(aspp_rates, output_stride, model="deeplab_v2", stated_at=8)
    return DeepLabV2(
        backbone=trunk,
        aspp=SummedPyramid(num_classes, rates, fc_channels, dropout_rate, dtype),
        output_stride=output_stride,
        scales=tuple(scales),
        alignment=alignment,
        dtype=dtype,
    )
