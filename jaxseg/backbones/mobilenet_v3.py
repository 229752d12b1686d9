"""MobileNetV3 large and small (Howard et al. 2019, arXiv 1905.02244, tables 1 and 2).

Differences from the paper: the channels of squeeze-and-excitation are a quarter of the expanded ones rounded to a
multiple of 8, and the expansion to the last 1x1 convolution is sixfold, as in torchvision. Above the output stride a
strided unit becomes a dilated one, itself included (torchvision; DeepLab dilates from the next unit on).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.backbones.mobilenet_v2 import divisible_by_8
from jaxseg.core.errors import JaxsegError
from jaxseg.layers.conv_norm import Conv, ConvNorm
from jaxseg.layers.image import check_output_stride
from jaxseg.layers.norm import NormOptions

# kernel, expanded channels, output channels, squeeze-and-excitation, hard-swish (else ReLU), stride.
UNITS = {
    "large": (
        (3, 16, 16, False, False, 1),
        (3, 64, 24, False, False, 2),
        (3, 72, 24, False, False, 1),
        (5, 72, 40, True, False, 2),
        (5, 120, 40, True, False, 1),
        (5, 120, 40, True, False, 1),
        (3, 240, 80, False, True, 2),
        (3, 200, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 480, 112, True, True, 1),
        (3, 672, 112, True, True, 1),
        (5, 672, 160, True, True, 2),
        (5, 960, 160, True, True, 1),
        (5, 960, 160, True, True, 1),
    ),
    "small": (
        (3, 16, 16, True, False, 2),
        (3, 72, 24, False, False, 2),
        (3, 88, 24, False, False, 1),
        (5, 96, 40, True, True, 2),
        (5, 240, 40, True, True, 1),
        (5, 240, 40, True, True, 1),
        (5, 120, 48, True, True, 1),
        (5, 144, 48, True, True, 1),
        (5, 288, 96, True, True, 2),
        (5, 576, 96, True, True, 1),
        (5, 576, 96, True, True, 1),
    ),
}
OUTPUT_STRIDES = (8, 16, 32)


class SqueezeExcitation(nn.Module):
    """`x * hard_sigmoid(W2 relu(W1 mean(x)))`, the mean over all pixels."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[*b, h, w, c] -> [*b, h, w, c]`."""
        mean = jnp.mean(x, axis=(-3, -2), keepdims=True, dtype=jnp.float32).astype(self.dtype)
        y = nn.relu(Conv(self.features, use_bias=True, dtype=self.dtype, name="squeeze")(mean))
        y = Conv(x.shape[-1], use_bias=True, dtype=self.dtype, name="excite")(y)
        return x * nn.hard_sigmoid(y)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise, squeeze-and-excitation, linear 1x1 projection; residual where nothing changes size.

    Attributes:
      kernel_size, expanded, features, excite, swish: one row of the paper's table.
      strides, dilation: of the depthwise convolution.
      residual: add the input where the channels match.
    """

    kernel_size: int
    expanded: int
    features: int
    excite: bool
    swish: bool
    strides: int = 1
    dilation: int = 1
    residual: bool = True
    padding: str = "torch"
    norm: NormOptions = NormOptions(epsilon=1e-3)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[*b, h, w, c] -> [*b, h', w', features]`."""
        shared: dict[str, Any] = {"norm": self.norm, "dtype": self.dtype}
        activation = nn.hard_swish if self.swish else nn.relu
        y = x
        if self.expanded != x.shape[-1]:
            y = ConvNorm(self.expanded, activation=activation, name="expand", **shared)(y, train)
        y = ConvNorm(
            self.expanded,
            self.kernel_size,
            strides=self.strides,
            dilation=self.dilation,
            groups=self.expanded,
            padding=self.padding,
            activation=activation,
            name="depthwise",
            **shared,
        )(y, train)
        if self.excite:
            y = SqueezeExcitation(divisible_by_8(self.expanded // 4), self.dtype, name="excitation")(y)
        y = ConvNorm(self.features, activation=None, name="project", **shared)(y, train)
        return y + x if self.residual and x.shape[-1] == self.features else y


class MobileNetV3(nn.Module):
    """The feature extractor. See `build_mobilenet_v3` for the attributes."""

    size: str = "large"
    output_stride: int = 32
    width: float = 1.0
    padding: str = "torch"
    norm: NormOptions = NormOptions(epsilon=1e-3)
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool) -> dict[str, jax.Array]:
        """`[*b, h, w, 3]` -> features by stride, `block0` .., `c1` .. `c5` and `conv_last`."""
        shared: dict[str, Any] = {"padding": self.padding, "norm": self.norm, "dtype": self.dtype}
        unit = nn.remat(InvertedResidual, static_argnums=(2,)) if self.remat else InvertedResidual
        stem = ConvNorm(divisible_by_8(16 * self.width), 3, strides=2, activation=nn.hard_swish, name="conv", **shared)
        x = stem(image, train)
        features = {"stem": x, "s2": x}
        stride, rate, stage = 2, 1, 0
        for i, (kernel, expanded, channels, excite, swish, nominal) in enumerate(UNITS[self.size]):
            strides = nominal
            if stride * nominal > self.output_stride:
                rate, strides = rate * nominal, 1
            stride *= strides
            x = unit(
                kernel,
                divisible_by_8(expanded * self.width),
                divisible_by_8(channels * self.width),
                excite,
                swish,
                strides=strides,
                dilation=rate,
                # By the table's stride: a unit that gives it up for a rate must not win a residual.
                residual=nominal == 1,
                name=f"block{i}",
                **shared,
            )(x, train)
            features[f"block{i}"] = features[f"s{stride}"] = x
            if nominal > 1:
                stage += 1
                features[f"c{stage}"] = x
        last = ConvNorm(6 * x.shape[-1], activation=nn.hard_swish, name="conv_last", **shared)(x, train)
        features["conv_last"] = features["c5"] = features[f"s{stride}"] = last
        return features


def build_mobilenet_v3(
    size: str,
    *,
    output_stride: int = 32,
    width: float = 1.0,
    padding: str = "torch",
    norm_momentum: float = 0.99,
    norm_epsilon: float = 1e-3,
    freeze_norm: bool = False,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """MobileNetV3 as a backbone.

    Args:
      size: "large" or "small".
      output_stride: 8, 16 or 32; beyond it strides become atrous rates.
      width: channel multiplier; channels are rounded to multiples of 8.
      padding: "torch" (symmetric, torchvision) or "same" (TensorFlow).
      norm_momentum, norm_epsilon, freeze_norm: batch norm.
      remat: recompute each unit in the backward pass instead of storing what is inside it.
      dtype: of the computation.

    Returns:
      A module: `module(image, train)` -> {"s2": 16 channels, "s4": 24 (small: 16), "s8": 40 (24), "s16": 112 (48),
      "s32": 960 (576)}: the last of each stride, the deepest after the last 1x1 convolution. "c1" .. "c4" are the first
      unit of each stage, as torchvision's heads take them, "c5" the deepest.

    Raises:
      JaxsegError: a size or an output stride that it cannot give.
    """
    name = f"mobilenet_v3_{size}"
    if size not in UNITS:
        raise JaxsegError(f"{name} does not exist; sizes are {', '.join(UNITS)}.")
    check_output_stride(output_stride, allowed=OUTPUT_STRIDES, model=name)
    return MobileNetV3(
        size=size,
        output_stride=output_stride,
        width=width,
        padding=padding,
        norm=NormOptions(norm_momentum, norm_epsilon, freeze_norm),
        remat=remat,
        dtype=dtype,
    )
