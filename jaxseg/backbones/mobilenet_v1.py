"""MobileNet (Howard et al. 2017, arXiv 1704.04861, table 1), the first.

Differences from the paper: ReLU6 in place of ReLU, as in TF-slim and Keras. The classifier (mean, linear) is left out.
Above the output stride a stride becomes an atrous rate for the layers after it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.layers.conv_norm import ConvNorm, SeparableConvNorm
from jaxseg.layers.image import check_output_stride
from jaxseg.layers.norm import NormOptions

# Table 1: channels and stride of each depthwise separable unit, after a 3x3 convolution with stride 2 to 32 channels.
UNITS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
OUTPUT_STRIDES = (2, 4, 8, 16, 32)


class MobileNetV1(nn.Module):
    """The feature extractor. See `build` for the attributes."""

    output_stride: int = 32
    width: float = 1.0
    padding: str = "same"
    norm: NormOptions = NormOptions(epsilon=1e-3)
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool) -> dict[str, jax.Array]:
        """`[*b, h, w, 3]` -> features by stride, and the taps `block0` .. `block12`."""
        unit = nn.remat(SeparableConvNorm, static_argnums=(2,)) if self.remat else SeparableConvNorm
        x = ConvNorm(
            max(8, int(32 * self.width)),
            3,
            strides=2,
            padding=self.padding,
            activation=nn.relu6,
            norm=self.norm,
            dtype=self.dtype,
            name="conv",
        )(image, train)
        features = {"stem": x}
        stride, rate = 2, 1
        for i, (channels, nominal) in enumerate(UNITS):
            strides, unit_rate = nominal, rate
            if stride * nominal > self.output_stride:
                # The unit that loses its stride keeps the rate it had; the units after it are dilated.
                rate, strides = rate * nominal, 1
            stride *= strides
            x = unit(
                max(8, int(channels * self.width)),
                strides=strides,
                dilation=unit_rate,
                padding=self.padding,
                activation=nn.relu6,
                norm=self.norm,
                dtype=self.dtype,
                name=f"block{i}",
            )(x, train)
            features[f"block{i}"] = features[f"s{stride}"] = x
        return features


def build(
    *,
    output_stride: int = 32,
    width: float = 1.0,
    padding: str = "same",
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-3,
    freeze_norm: bool = False,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """MobileNetV1 as a backbone.

    Args:
      output_stride: 2, 4, 8, 16 or 32; beyond it strides become atrous rates.
      width: channel multiplier alpha; at least 8 channels remain.
      padding: "same" as TensorFlow's weights expect, or "torch".
      norm_momentum, norm_epsilon, freeze_norm: batch norm.
      remat: recompute each unit in the backward pass instead of storing what is inside it.
      dtype: of the computation.

    Returns:
      A module: `module(image, train)` -> {"s2": 64 channels, "s4": 128, "s8": 256, "s16": 512, "s32": 1024, taps}; the
      deepest of a smaller output stride has 1024.

    Raises:
      JaxsegError: an output stride that it cannot give.
    """
    check_output_stride(output_stride, allowed=OUTPUT_STRIDES, model="mobilenet_v1")
    return MobileNetV1(
        output_stride=output_stride,
        width=width,
        padding=padding,
        norm=NormOptions(norm_momentum, norm_epsilon, freeze_norm),
        remat=remat,
        dtype=dtype,
    )
