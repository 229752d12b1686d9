"""Atrous spatial pyramid pooling as in DeepLab v3 (arXiv 1706.05587, section 3.3) and v3+."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.layers.conv_norm import ConvNorm, separable_or_plain
from jaxseg.layers.dropout import Dropout
from jaxseg.layers.norm import NormOptions
from jaxseg.layers.residual import input_of_branches


class ASPP(nn.Module):
    """1x1 convolution, one atrous 3x3 convolution a rate and image pooling, concatenated and projected.

    The concatenation's order is pooling, 1x1, rates, as in TensorFlow's release, so that its weights fit as they are.

    Attributes:
      features: channels of each branch and of the result.
      rates: atrous rates in pixels of this feature map; may be empty.
      separable: depthwise separable 3x3 branches.
      depthwise_norm: batch norm and ReLU between their two convolutions.
      image_pooling: add the branch of the global mean.
      dropout_rate: after the projection, in training only.
      norm: options of the batch norms.
      dtype: of the computation.
    """

    features: int = 256
    rates: tuple[int, ...] = (6, 12, 18)
    separable: bool = False
    image_pooling: bool = True
    dropout_rate: float = 0.1
    depthwise_norm: bool = True
    norm: NormOptions = NormOptions()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[*b, h, w, c] -> [*b, h, w, features]`."""
        branches, x = [], input_of_branches(self, x)
        if self.image_pooling:
            # The resize of a 1x1 map is the same value everywhere under any alignment. Mean in float32: it runs over
            # thousands of values.
            mean = jnp.mean(x, axis=(-3, -2), keepdims=True, dtype=jnp.float32).astype(self.dtype)
            pooled = ConvNorm(self.features, norm=self.norm, dtype=self.dtype, name="image_pooling")(mean, train)
            branches.append(jnp.broadcast_to(pooled, (*x.shape[:-1], self.features)))
        branches.append(ConvNorm(self.features, norm=self.norm, dtype=self.dtype, name="conv1x1")(x, train))
        branch = separable_or_plain(self.separable, self.depthwise_norm, norm=self.norm, dtype=self.dtype)
        for i, rate in enumerate(self.rates):
            branches.append(branch(self.features, kernel_size=3, dilation=rate, name=f"atrous{i + 1}")(x, train))
        y = jnp.concatenate(branches, axis=-1)
        y = ConvNorm(self.features, norm=self.norm, dtype=self.dtype, name="project")(y, train)
        return Dropout(self.dropout_rate, deterministic=not train, name="dropout")(y)
