"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381), laid out as TF-slim's, so that its weights fit.

Differences from the paper: none. Above the output stride a stride becomes an atrous rate for the layers after it, as in
DeepLab (arXiv 1606.00915, section 3.1); the last 1x1 convolution to 1280 channels belongs to the classifier alone, or
(`last_convolution`) ends the backbone. torchvision's flavour is `padding="torch"`, `norm_epsilon=1e-5`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.errors import JaxsegError
from jaxseg.layers.conv_norm import Conv, ConvNorm
from jaxseg.layers.image import check_output_stride
from jaxseg.layers.norm import NormOptions

# Table 2 of the paper: expansion, channels, units, stride of the first unit.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
OUTPUT_STRIDES = (2, 4, 8, 16, 32)


def divisible_by_8(channels: float) -> int:
    """The nearest multiple of 8, at least 8, and never more than 10 % below `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection; residual where stride is 1 and the channels match.

    Attributes:
      features: output channels.
      expansion: factor of the hidden channels; 1 leaves the first convolution out.
      strides, dilation: of the depthwise convolution.
      residual: add the input where the channels match. Goes by the stride of the paper's table: a unit that gives up
        its stride for a rate must not win a residual.
    """

    features: int
    expansion: int
    strides: int = 1
    dilation: int = 1
    residual: bool = True
    padding: str = "same"
    norm: NormOptions = NormOptions()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Returns the block's output and, as a tap, what its depthwise convolution gives."""
        shared: dict[str, Any] = {"norm": self.norm, "dtype": self.dtype}
        hidden = x.shape[-1] * self.expansion
        y = x
        if self.expansion > 1:
            y = ConvNorm(hidden, activation=nn.relu6, name="expand", **shared)(y, train)
        depthwise = ConvNorm(
            hidden,
            3,
            strides=self.strides,
            dilation=self.dilation,
            groups=hidden,
            padding=self.padding,
            activation=nn.relu6,
            name="depthwise",
            **shared,
        )(y, train)
        y = ConvNorm(self.features, activation=None, name="project", **shared)(depthwise, train)
        if self.residual and x.shape[-1] == self.features:
            y = y + x
        return y, depthwise


class MobileNetV2(nn.Module):
    """The feature extractor. See `build` for the attributes."""

    output_stride: int = 32
    width: float = 1.0
    padding: str = "same"
    last_convolution: bool = False
    dilate_first_unit: bool = False
    stop_at_output_stride: bool = False
    norm: NormOptions = NormOptions(epsilon=1e-3)
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool) -> dict[str, jax.Array]:
        """`[*b, h, w, 3]` -> features by stride, and the taps `block0` .. `block16` and `s<stride>_depthwise`."""
        shared: dict[str, Any] = {"padding": self.padding, "norm": self.norm, "dtype": self.dtype}
        unit = nn.remat(InvertedResidual, static_argnums=(2,)) if self.remat else InvertedResidual
        x = ConvNorm(divisible_by_8(32 * self.width), 3, strides=2, activation=nn.relu6, name="conv", **shared)(
            image, train
        )
        features: dict[str, jax.Array] = {"stem": x}
        stride, rate, index = 2, 1, 0
        for expansion, channels, units, first_stride in STAGES:
            for i in range(units):
                strides, unit_rate = (first_stride if i == 0 else 1), rate
                if strides > 1 and stride * strides > self.output_stride:
                    if self.stop_at_output_stride:
                        return features
                    # DeepLab: the unit that loses its stride keeps the rate it had; the units after it are dilated.
                    rate, strides = rate * strides, 1
                    unit_rate = rate if self.dilate_first_unit else unit_rate
                stride *= strides
                block = unit(
                    divisible_by_8(channels * self.width),
                    expansion,
                    strides=strides,
                    dilation=unit_rate,
                    residual=i > 0 or first_stride == 1,
                    name=f"block{index}",
                    **shared,
                )
                x, depthwise = block(x, train)
                features[f"block{index}"] = features[f"s{stride}"] = x
                features[f"s{stride}_depthwise"] = depthwise
                index += 1
        if self.last_convolution:
            last = divisible_by_8(1280 * max(self.width, 1.0))
            x = ConvNorm(last, activation=nn.relu6, name="conv_last", **shared)(x, train)
            features["conv_last"] = features[f"s{stride}"] = x
        return features


class MobileNetV2Classifier(nn.Module):
    """The ImageNet classifier: backbone, 1x1 convolution to 1280, global mean, linear. Logits `[*b, num_classes]`."""

    num_classes: int = 1001
    width: float = 1.0
    norm: NormOptions = NormOptions(epsilon=1e-3)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool) -> dict[str, jax.Array]:
        """Returns `logits` and the backbone's features."""
        features = MobileNetV2(width=self.width, norm=self.norm, dtype=self.dtype, name="backbone")(image, train)
        last = divisible_by_8(1280 * max(self.width, 1.0))
        x = ConvNorm(last, activation=nn.relu6, norm=self.norm, dtype=self.dtype, name="conv_last")(
            features["s32"], train
        )
        mean = jnp.mean(x, axis=(-3, -2), keepdims=True, dtype=jnp.float32)
        logits = Conv(self.num_classes, use_bias=True, name="classifier")(mean)
        return features | {"conv_last": x, "logits": logits[..., 0, 0, :]}


def build(
    *,
    output_stride: int = 32,
    width: float = 1.0,
    padding: str = "same",
    last_convolution: bool = False,
    dilate_first_unit: bool = False,
    stop_at_output_stride: bool = False,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-3,
    freeze_norm: bool = False,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """MobileNetV2 as a backbone.

    Args:
      output_stride: 2, 4, 8, 16 or 32; beyond it strides become atrous rates.
      width: channel multiplier; channels are rounded to multiples of 8.
      padding: "same" as TensorFlow's weights expect, or "torch" (with `norm_epsilon=1e-5`: torchvision's network).
      last_convolution: the classifier's 1x1 convolution to 1280 channels gives the deepest features, as in
        segmentation_models_pytorch.
      dilate_first_unit: the unit that loses its stride has the new rate already (DeepLab of
        segmentation_models_pytorch); False: it keeps the rate before.
      stop_at_output_stride: leave out the units beyond the output stride instead of dilating them.
      norm_momentum, norm_epsilon, freeze_norm: batch norm.
      remat: recompute each block in the backward pass instead of storing what is inside it.
      dtype: of the computation.

    Returns:
      A module: `module(image, train)` -> {"s2": 16 channels, "s4": 24, "s8": 32, "s16": 96 (320 at output stride 16),
      "s32": 320, taps}; channels for width 1.

    Raises:
      JaxsegError: an output stride that it cannot give; a last convolution after units that are left out.
    """
    check_output_stride(output_stride, allowed=OUTPUT_STRIDES, model="mobilenet_v2")
    if last_convolution and stop_at_output_stride and output_stride < 32:
        raise JaxsegError(
            f"mobilenet_v2: last_convolution = True follows the last unit, which stop_at_output_stride = True leaves "
            f"out at output stride {output_stride}."
        )
    return MobileNetV2(
        output_stride=output_stride,
        width=width,
        padding=padding,
        last_convolution=last_convolution,
        dilate_first_unit=dilate_first_unit,
        stop_at_output_stride=stop_at_output_stride,
        norm=NormOptions(norm_momentum, norm_epsilon, freeze_norm),
        remat=remat,
        dtype=dtype,
    )
