"""ResNet (He et al. 2015, arXiv 1512.03385) as a dense feature extractor.

Differences from the paper: the stride of a bottleneck stands in its 3x3 convolution as in torchvision ("v1.5"), or in
the first 1x1 as in the paper and Caffe (`stride_in_1x1`). Above the output stride a stage's stride becomes an
atrous rate.
Variants: the deep stem of three 3x3 convolutions (`stem="deep"`; PSPNet, UPerNet), Caffe's pooling (`stem_pool`), rates
of the first unit of a dilated stage (`dilate_first_unit`). ResNet-D (He et al. 2018, arXiv 1812.01187; timm's resnet50d
and others) has a deep stem of 32, 32 and 64 channels and halves the shortcut by average pooling: `stem="deep",
stem_channels=(32, 32, 64), pooled_shortcut=True`.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.errors import JaxsegError
from jaxseg.layers.conv_norm import ConvNorm
from jaxseg.layers.image import check_output_stride
from jaxseg.layers.norm import NormOptions
from jaxseg.layers.residual import unit_output
from jaxseg.ops.pooling import average_pool, max_pool

UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
OUTPUT_STRIDES = (4, 8, 16, 32)
STEMS = ("conv7", "deep")
# What the pooling after the stem does: padding of one and the number of windows rounded down (torchvision) or up
# (DeepLab v2's PyTorch port), or no padding and rounded up (Caffe).
STEM_POOLS: dict[str, dict[str, Any]] = {
    "floor": {"padding": 1},
    "ceil": {"padding": 1, "ceil": True},
    "caffe": {"ceil": True},
}


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 (four times the channels) and a shortcut; ReLU after the sum.

    Attributes:
      features: channels of the 3x3 convolution.
      strides: of the unit.
      dilation: of the 3x3 convolution.
      project_shortcut: 1x1 convolution on the shortcut.
      stride_in_1x1: the stride stands in the first 1x1.
      shortcut_pool: average pooling before the shortcut's convolution, which then has no stride: "" none, "stride" 2x2
        with the unit's stride, "same" 2x2 with stride 1 and zeros after the last row and column.
    """

    features: int
    strides: int = 1
    dilation: int = 1
    project_shortcut: bool = False
    stride_in_1x1: bool = False
    shortcut_pool: str = ""
    padding: str = "torch"
    norm: NormOptions = NormOptions()
    dtype: jnp.dtype = jnp.float32

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[*b, h, w, c] -> [*b, h', w', 4 features]`."""
        shared: dict[str, Any] = {"padding": self.padding, "norm": self.norm, "dtype": self.dtype}
        first, second = (self.strides, 1) if self.stride_in_1x1 else (1, self.strides)
        y = ConvNorm(self.features, strides=first, name="conv1", **shared)(x, train)
        y = ConvNorm(self.features, 3, strides=second, dilation=self.dilation, name="conv2", **shared)(y, train)
        y = ConvNorm(self.features * self.expansion, activation=None, name="conv3", **shared)(y, train)
        return unit_output(self, nn.relu(y + _shortcut(self, x, train, shared)))


class Basic(nn.Module):
    """3x3, 3x3 and a shortcut, for the 18 and 34 layer networks; attributes as `Bottleneck`."""

    features: int
    strides: int = 1
    dilation: int = 1
    project_shortcut: bool = False
    stride_in_1x1: bool = False
    shortcut_pool: str = ""
    padding: str = "torch"
    norm: NormOptions = NormOptions()
    dtype: jnp.dtype = jnp.float32

    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[*b, h, w, c] -> [*b, h', w', features]`."""
        shared: dict[str, Any] = {"padding": self.padding, "norm": self.norm, "dtype": self.dtype}
        y = ConvNorm(self.features, 3, strides=self.strides, dilation=self.dilation, name="conv1", **shared)(x, train)
        y = ConvNorm(self.features, 3, dilation=self.dilation, activation=None, name="conv2", **shared)(y, train)
        return unit_output(self, nn.relu(y + _shortcut(self, x, train, shared)))


def _shortcut(unit: Bottleneck | Basic, x: jax.Array, train: bool, shared: dict[str, Any]) -> jax.Array:
    if not unit.project_shortcut:
        return x
    strides = 1 if unit.shortcut_pool else unit.strides
    if unit.shortcut_pool == "stride":
        x = average_pool(x, 2, strides=unit.strides, ceil=True, count_include_pad=False)
    elif unit.shortcut_pool == "same":
        # timm counts the zeros: the last row and column are averages over them too.
        x = average_pool(jnp.pad(x, ((0, 0),) * (x.ndim - 3) + ((0, 1), (0, 1), (0, 0))), 2, strides=1)
    features = unit.features * unit.expansion
    return ConvNorm(features, strides=strides, activation=None, name="shortcut", **shared)(x, train)


class ResNet(nn.Module):
    """The trunk: no classifier. See `build_resnet` for the attributes."""

    depth: int = 50
    output_stride: int = 32
    multi_grid: tuple[int, ...] = ()
    stride_in_1x1: bool = False
    dilate_first_unit: bool = False
    stem: str = "conv7"
    stem_channels: tuple[int, ...] = (64,)
    stem_pool: str = "floor"
    pooled_shortcut: bool = False
    stop_at_output_stride: bool = False
    width: int = 64
    padding: str = "torch"
    norm: NormOptions = NormOptions()
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool) -> dict[str, jax.Array]:
        """`[*b, h, w, 3]` -> features by stride, and the taps `stem_pool`, `stage1` .. `stage4`."""
        shared: dict[str, Any] = {"padding": self.padding, "norm": self.norm, "dtype": self.dtype}
        x = image
        for i, channels in enumerate(self.stem_channels):
            if self.stem == "deep":
                x = ConvNorm(channels, 3, strides=2 if i == 0 else 1, name=f"stem{i + 1}", **shared)(x, train)
            else:
                x = ConvNorm(channels, 7, strides=2, name="stem", **shared)(x, train)
        features = {"s2": x}
        pooling = {"padding": "SAME"} if self.padding == "same" else STEM_POOLS[self.stem_pool]
        features["stem_pool"] = x = max_pool(x, 3, strides=2, **pooling)
        block = Basic if self.depth in (18, 34) else Bottleneck
        unit = nn.remat(block, static_argnums=(2,)) if self.remat else block
        stride, rate = 4, 1
        for stage, units in enumerate(UNITS[self.depth]):
            first_stride, first_rate = (1 if stage == 0 else 2), rate
            beyond = stride * first_stride > self.output_stride
            if beyond and self.stop_at_output_stride:
                break
            if beyond:
                # The unit that loses its stride keeps the rate it had (torchvision, DeepLab); the next are dilated.
                rate, first_stride = rate * first_stride, 1
                first_rate = rate if self.dilate_first_unit else first_rate
            stride *= first_stride
            width = self.width * 2**stage
            pool = "" if not self.pooled_shortcut else "same" if rate > 1 else "stride" if first_stride > 1 else ""
            for i in range(units):
                dilation = first_rate if i == 0 else rate
                if stage == 3 and self.multi_grid:
                    dilation = rate * self.multi_grid[i]
                x = unit(
                    width,
                    strides=first_stride if i == 0 else 1,
                    dilation=dilation,
                    project_shortcut=i == 0
                    and (first_stride > 1 or x.shape[-1] != width * block.expansion or stage > 0),
                    stride_in_1x1=self.stride_in_1x1,
                    shortcut_pool=pool if i == 0 else "",
                    name=f"stage{stage + 1}_unit{i + 1}",
                    **shared,
                )(x, train)
            features[f"stage{stage + 1}"] = features[f"s{stride}"] = x
        return features


def build_resnet(
    depth: int,
    *,
    output_stride: int = 32,
    multi_grid: tuple[int, ...] = (),
    stride_in_1x1: bool = False,
    dilate_first_unit: bool = False,
    stem: str = "conv7",
    stem_channels: Sequence[int] = (),
    stem_pool: str = "floor",
    pooled_shortcut: bool = False,
    stop_at_output_stride: bool = False,
    width: int = 64,
    padding: str = "torch",
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    freeze_norm: bool = False,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """A ResNet trunk.

    Args:
      depth: 18, 34, 50, 101 or 152.
      output_stride: 4, 8, 16 or 32.
      multi_grid: factors of the last stage's rate, one a unit, for example (1, 2, 4) of DeepLab v3; () for none.
      stride_in_1x1: stride in the first 1x1 of a unit (the paper, Caffe) instead of the 3x3 (torchvision).
      dilate_first_unit: the unit that loses its stride has the stage's new rate already (PSPNet, DeepLab v2's Caffe
        networks); False: it keeps the rate before (torchvision, TensorFlow's DeepLab).
      stem: "conv7", a 7x7 convolution, or "deep", three 3x3 convolutions.
      stem_channels: of its convolutions; () is (width,), deep (width, width, 2 width). ResNet-D's are (32, 32, 64).
      stem_pool: the 3x3 pooling after it: "floor" (torchvision), "ceil", or "caffe" (ceil, no padding). With padding
        "same" it is TensorFlow's.
      pooled_shortcut: ResNet-D's: where a shortcut loses rows and columns, 2x2 average pooling does it, before the 1x1
        convolution. In a dilated stage it averages with stride 1, as in timm.
      stop_at_output_stride: leave out the stages beyond the output stride instead of dilating them.
      width: channels of the stem; 64 is the paper's.
      padding: "torch" (symmetric, torchvision) or "same" (TensorFlow).
      norm_momentum, norm_epsilon, freeze_norm: batch norm.
      remat: recompute each unit in the backward pass instead of storing what is inside it.
      dtype: of the computation.

    Returns:
      A module: `module(image, train)` -> {"s2": stem, "s4": stage 1, ..., deepest: stage 4, "stem_pool", "stage1" ..
      "stage4"}. Channels: stem 64 (deep 128), stages 256, 512, 1024, 2048; 64, 128, 256, 512 for 18 and 34.

    Raises:
      JaxsegError: an output stride that it cannot give, an unknown stem or pooling, channels that the stem has no
        convolutions for, or as many grid factors as the last stage has no units.
    """
    name = f"resnet{depth}"
    if depth not in UNITS:
        raise JaxsegError(f"{name} does not exist; depths are {', '.join(map(str, UNITS))}.")
    check_output_stride(output_stride, allowed=OUTPUT_STRIDES, model=name)
    for option, value, known in (("stem", stem, STEMS), ("stem_pool", stem_pool, STEM_POOLS)):
        if value not in known:
            raise JaxsegError(f"{name}: {option} = {value!r} is not one of {', '.join(known)}.")
    channels = tuple(stem_channels) or ((width, width, 2 * width) if stem == "deep" else (width,))
    if len(channels) != (3 if stem == "deep" else 1) or min(channels) < 1:
        count = "three" if stem == "deep" else "one"
        raise JaxsegError(f"{name}: stem_channels = {channels} must be {count} for stem {stem!r}, and positive.")
    multi_grid = tuple(multi_grid)
    if multi_grid and (len(multi_grid) != UNITS[depth][3] or min(multi_grid) < 1):
        raise JaxsegError(f"{name}: multi_grid = {multi_grid} must be {UNITS[depth][3]} positive factors, or ().")
    return ResNet(
        depth=depth,
        output_stride=output_stride,
        multi_grid=multi_grid,
        stride_in_1x1=stride_in_1x1,
        dilate_first_unit=dilate_first_unit,
        stem=stem,
        stem_channels=channels,
        stem_pool=stem_pool,
        pooled_shortcut=pooled_shortcut,
        stop_at_output_stride=stop_at_output_stride,
        width=width,
        padding=padding,
        norm=NormOptions(norm_momentum, norm_epsilon, freeze_norm),
        remat=remat,
        dtype=dtype,
    )
