"""AlexNet as Caffe's reference network, CaffeNet (Krizhevsky et al. 2012; Jia et al. 2014, arXiv 1408.5093).

| layer | kernel, stride, padding | channels, groups | then                                       |
|-------|-------------------------|------------------|--------------------------------------------|
| conv1 | 11, 4, 0                | 96               | ReLU, pool1 3x3 stride 2, response norm    |
| conv2 | 5, 1, 2                 | 256, 2           | ReLU, pool2 3x3 stride 2, response norm    |
| conv3 | 3, 1, 1                 | 384              | ReLU                                       |
| conv4 | 3, 1, 1                 | 384, 2           | ReLU                                       |
| conv5 | 3, 1, 1                 | 256, 2           | ReLU, pool5 3x3 stride 2                   |

Differences from the paper: CaffeNet pools before the response norm. Pooling counts its windows up. `first_padding` is
FCN-AlexNet's 100 zeros around the image.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.errors import JaxsegError
from jaxseg.layers.conv_norm import Conv
from jaxseg.layers.image import check_output_stride
from jaxseg.ops.local_response_norm import local_response_norm
from jaxseg.ops.pooling import max_pool


class AlexNet(nn.Module):
    """The five convolutions. See `build` for the attributes."""

    first_padding: int = 0
    width: int = 96
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool) -> dict[str, jax.Array]:
        """`[*b, h, w, 3]` -> features by stride, taps `conv1` .. `conv5`, `pool1`, `norm1`, `pool2`, ..."""
        del train
        features: dict[str, jax.Array] = {}
        normalized = jax.checkpoint(local_response_norm) if self.remat else local_response_norm
        x = image

        def conv(x: jax.Array, index: int, channels: int, kernel_size: int, **options: Any) -> jax.Array:
            layer = Conv(channels, kernel_size, use_bias=True, dtype=self.dtype, name=f"conv{index}", **options)
            features[f"conv{index}"] = y = nn.relu(layer(x))
            return y

        def pool(x: jax.Array, index: int) -> jax.Array:
            features[f"pool{index}"] = y = max_pool(x, 3, strides=2, ceil=True)
            return y

        unit = self.width // 6
        x = conv(x, 1, 6 * unit, 11, strides=4, padding=self.first_padding)
        features["s4"] = x
        features["norm1"] = x = normalized(pool(x, 1))
        x = conv(x, 2, 16 * unit, 5, padding="torch", groups=2)
        features["s8"] = x
        features["norm2"] = x = normalized(pool(x, 2))
        x = conv(x, 3, 24 * unit, 3, padding="torch")
        x = conv(x, 4, 24 * unit, 3, padding="torch", groups=2)
        x = conv(x, 5, 16 * unit, 3, padding="torch", groups=2)
        features["s16"] = x
        features["s32"] = pool(x, 5)
        return features


def build(
    *,
    output_stride: int = 32,
    first_padding: int = 0,
    width: int = 96,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    freeze_norm: bool = False,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """CaffeNet as a backbone.

    Args:
      output_stride: 32.
      first_padding: zeros around the image (FCN-AlexNet: 100).
      width: channels of conv1, a multiple of 6; 96 is the paper's.
      norm_momentum, norm_epsilon, freeze_norm: of no effect, it has no batch norm.
      remat: recompute the response normalisation in the backward pass instead of storing what is inside it.
      dtype: of the computation.

    Returns:
      A module: `module(image, train)` -> {"s4": 96 channels, "s8": 256, "s16": 256, "s32": 256, taps}.

    Raises:
      JaxsegError: another output stride, or a width that is no multiple of 6.
    """
    del norm_momentum, norm_epsilon, freeze_norm
    check_output_stride(output_stride, allowed=(32,), model="alexnet")
    if width < 6 or width % 6:
        raise JaxsegError(f"alexnet: width = {width} must be a multiple of 6.")
    return AlexNet(first_padding=first_padding, width=width, remat=remat, dtype=dtype)
