"""Aligned Xception as modified for DeepLab v3+ (Chen et al. 2018, arXiv 1802.02611, figure 4; Chollet 1610.02357).

| block | separable 3x3 convolutions | stride | shortcut |
|---|---|---|---|
| stem1, stem2 | plain 3x3: 32, 64 | 2, 1 | |
| entry1 .. entry3 (41, 65) | 128 x 3, 256 x 3, 728 x 3 | 2 each | 1x1 convolution |
| entry1 .. entry5 (71) | 128, 256, 256, 728, 728, three of each | 2, 1, 2, 1, 2 | 1x1 convolution |
| middle1 .. middle8 (41) or middle16 (65, 71) | 728 x 3 | 1 | identity |
| exit1 | 728, 1024, 1024 | 2 | 1x1 convolution |
| exit2 | 1536, 1536, 2048, activation inside | 1 | none |

Batch norm follows every depthwise and every pointwise convolution. A block's stride stands in its last convolution. But
for exit2, ReLU stands before each separable convolution and none within; in exit2 it follows both halves.

Differences from the paper: none. As in TensorFlow's release, strided convolutions pad `(k - 1) // 2 * rate` on both
sides whatever the size, which is PyTorch's padding.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.errors import JaxsegError
from jaxseg.layers.conv_norm import ConvNorm, SeparableConvNorm
from jaxseg.layers.image import check_output_stride
from jaxseg.layers.norm import NormOptions
from jaxseg.layers.residual import unit_output

OUTPUT_STRIDES = (8, 16, 32)
ENTRY = {
    41: ((128, 2), (256, 2), (728, 2)),
    65: ((128, 2), (256, 2), (728, 2)),
    71: ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2)),
}
MIDDLE_UNITS = {41: 8, 65: 16, 71: 16}


class Unit(nn.Module):
    """Three separable convolutions and a shortcut.

    Attributes:
      features: channels of the three convolutions.
      strides: of the last convolution and of the shortcut.
      dilation: of all three.
      shortcut: "conv", "identity" or "none".
      activation_inside: ReLU after the depthwise and pointwise halves instead of before the convolution.
    """

    features: tuple[int, ...]
    strides: int = 1
    dilation: int = 1
    shortcut: str = "conv"
    activation_inside: bool = False
    norm: NormOptions = NormOptions(epsilon=1e-3)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Returns the unit's output and, as a tap, that of its second convolution."""
        shared: dict[str, Any] = {"padding": "torch", "norm": self.norm, "dtype": self.dtype}
        y, taps = x, []
        for i, features in enumerate(self.features):
            y = SeparableConvNorm(
                features,
                strides=self.strides if i == 2 else 1,
                dilation=self.dilation,
                activation=nn.relu if self.activation_inside else None,
                name=f"separable{i + 1}",
                **shared,
            )(y if self.activation_inside else nn.relu(y), train)
            taps.append(y)
        if self.shortcut == "conv":
            x = ConvNorm(self.features[-1], strides=self.strides, activation=None, name="shortcut", **shared)(x, train)
        return (y if self.shortcut == "none" else unit_output(self, y + x)), taps[1]


class Xception(nn.Module):
    """The trunk: no classifier. See `build_xception` for the attributes."""

    depth: int = 65
    output_stride: int = 16
    width: float = 1.0
    norm: NormOptions = NormOptions(epsilon=1e-3)
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    def _plan(self) -> list[tuple[str, tuple[int, int, int], int, str]]:
        """(name, channels, nominal stride, shortcut) of every unit."""
        plan = [(f"entry{i + 1}", (c, c, c), s, "conv") for i, (c, s) in enumerate(ENTRY[self.depth])]
        plan += [(f"middle{i + 1}", (728, 728, 728), 1, "identity") for i in range(MIDDLE_UNITS[self.depth])]
        return [*plan, ("exit1", (728, 1024, 1024), 2, "conv"), ("exit2", (1536, 1536, 2048), 1, "none")]

    @nn.compact
    def __call__(self, image: jax.Array, train: bool) -> dict[str, jax.Array]:
        """`[*b, h, w, 3]` -> features by stride, and each unit's output by its name."""
        shared: dict[str, Any] = {"norm": self.norm, "dtype": self.dtype}
        unit = nn.remat(Unit, static_argnums=(2,)) if self.remat else Unit
        x = ConvNorm(self._scaled(32), 3, strides=2, padding="torch", name="stem1", **shared)(image, train)
        x = ConvNorm(self._scaled(64), 3, padding="torch", name="stem2", **shared)(x, train)
        features = {"stem": x}
        stride, rate = 2, 1
        for name, channels, nominal, shortcut in self._plan():
            strides, unit_rate = nominal, rate
            if stride * nominal > self.output_stride:
                # The unit that loses its stride keeps the rate it had; the units after it are dilated.
                rate, strides = rate * nominal, 1
            x, second = unit(
                tuple(self._scaled(c) for c in channels),
                strides=strides,
                dilation=unit_rate,
                shortcut=shortcut,
                activation_inside=name == "exit2",
                name=name,
                **shared,
            )(x, train)
            # The deepest map of a stride is the input of its next strided convolution: the second of the three.
            features[f"s{stride}"] = second if strides > 1 else x
            stride *= strides
            features[name] = features[f"s{stride}"] = x
        return features

    def _scaled(self, channels: int) -> int:
        return max(1, round(channels * self.width))


def build_xception(
    depth: int,
    *,
    output_stride: int = 16,
    width: float = 1.0,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-3,
    freeze_norm: bool = False,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """An aligned Xception trunk.

    Args:
      depth: 41, 65 or 71.
      output_stride: 8, 16 or 32; beyond it strides become atrous rates (middle 2, exit1 2, exit2 4 at stride 8).
      width: factor of all channels; 1 is the paper's.
      norm_momentum, norm_epsilon, freeze_norm: batch norm; DeepLab's code has 0.9997 and 1e-3.
      remat: recompute each unit in the backward pass instead of storing what is inside it.
      dtype: of the computation.

    Returns:
      A module: `module(image, train)` -> {"s2": 128 channels, "s4": 256, "s8": 728, "s16": 1024, deepest: 2048,
      "stem", and "entry1" .. "exit2"}. "s4" is the second separable convolution of the second block with stride
      (entry2; entry3 in Xception-71), before any ReLU: DeepLab v3+'s low-level features.

    Raises:
      JaxsegError: a depth or an output stride that it cannot give.
    """
    name = f"xception{depth}"
    if depth not in ENTRY:
        raise JaxsegError(f"{name} does not exist; depths are {', '.join(map(str, ENTRY))}.")
    check_output_stride(output_stride, allowed=OUTPUT_STRIDES, model=name)
    return Xception(
        depth=depth,
        output_stride=output_stride,
        width=width,
        norm=NormOptions(norm_momentum, norm_epsilon, freeze_norm),
        remat=remat,
        dtype=dtype,
    )
