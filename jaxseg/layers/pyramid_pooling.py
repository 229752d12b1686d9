"""Pyramid pooling of PSPNet (arXiv 1612.01105) and UPerNet (arXiv 1807.10221)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.layers.conv_norm import Conv, ConvNorm
from jaxseg.layers.norm import NormOptions
from jaxseg.ops.pooling import adaptive_average_pool
from jaxseg.ops.resize import resize


class PyramidPooling(nn.Module):
    """The input beside its averages over 1, 4, 9 and 36 bins, each convolved by 1x1 and resized back.

    Attributes:
      features: channels of each level.
      bins: rows and columns of bins, a level each.
      alignment: of the resizing.
      resize_first: resize before the convolution (UPerNet) instead of after it (PSPNet); with batch norm and ReLU these
        are not the same.
      single_bin_norm: batch norm on the level of one bin too; False: a bias instead (segmentation_models_pytorch).
      norm: options of the batch norms.
      dtype: of the computation.
    """

    features: int = 512
    bins: tuple[int, ...] = (1, 2, 3, 6)
    alignment: str = "align_corners"
    resize_first: bool = False
    single_bin_norm: bool = True
    norm: NormOptions = NormOptions()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[*b, h, w, c] -> [*b, h, w, c + levels * features]`, the input first."""
        size, levels = x.shape[-3:-1], [x]
        for bins in self.bins:
            pooled = adaptive_average_pool(x, bins)
            if self.resize_first:
                levels.append(self._level(bins, resize(pooled, size, alignment=self.alignment), train))
            else:
                levels.append(resize(self._level(bins, pooled, train), size, alignment=self.alignment))
        return jnp.concatenate(levels, axis=-1)

    def _level(self, bins: int, x: jax.Array, train: bool) -> jax.Array:
        shared: dict[str, Any] = {"dtype": self.dtype, "name": f"level{bins}"}
        if bins == 1 and not self.single_bin_norm:
            return nn.relu(Conv(self.features, use_bias=True, **shared)(x))
        return ConvNorm(self.features, norm=self.norm, **shared)(x, train)
