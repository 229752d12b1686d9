"""The fully connected layers of a classifier as convolutions: fc6 and fc7 of FCN, the dilated front end, DeepLab."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.layers.conv_norm import Conv
from jaxseg.layers.dropout import Dropout


class FullyConnectedConvs(nn.Module):
    """`fc6` (k x k) and `fc7` (1x1), each with bias, ReLU and dropout.

    | network               | kernel_size | dilation | padding | features |
    |-----------------------|-------------|----------|---------|----------|
    | FCN (VGG / AlexNet)   | 7 / 6       | 1        | valid   | 4096     |
    | dilated front end     | 7           | 4        | valid   | 4096     |
    | DeepLab v1 7x7 / 4x4  | 7 / 4       | 4        | same    | 4096     |
    | DeepLab v1 LargeFOV   | 3           | 12       | same    | 1024     |

    Attributes:
      features: output channels of both.
      kernel_size, dilation, padding: of fc6, as `Conv`; "same" keeps the size for even kernels too.
      dropout_rate: element-wise, as in Caffe.
      dtype: of the computation.
    """

    features: int = 4096
    kernel_size: int = 7
    dilation: int = 1
    padding: str | int = "valid"
    dropout_rate: float = 0.5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[*b, h, w, c] -> [*b, h', w', features]`."""
        for name, kernel_size, dilation, padding in (
            ("fc6", self.kernel_size, self.dilation, self.padding),
            ("fc7", 1, 1, "valid"),
        ):
            x = Conv(
                self.features,
                kernel_size,
                dilation=dilation,
                padding=padding,
                use_bias=True,
                dtype=self.dtype,
                name=name,
            )(x)
            x = Dropout(self.dropout_rate, deterministic=not train, name=f"dropout_{name}")(nn.relu(x))
        return x
