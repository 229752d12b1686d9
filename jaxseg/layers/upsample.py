"""Up-sampling as a choice by name, where papers differ: bilinear, nearest, transposed, unpooling, bed of nails."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.core.errors import JaxsegError
from jaxseg.layers.conv_norm import Initializer
from jaxseg.ops.apart import gradient_written
from jaxseg.ops.pooling import unpool
from jaxseg.ops.resize import ALIGNMENTS, resize
from jaxseg.ops.transposed import bilinear_conv_transpose, bilinear_weights, conv_transpose

METHODS = ("bilinear", "nearest", "transposed", "fixed_transposed", "bed_of_nails", "unpool")
INITIAL_KERNELS = ("bilinear", "he")


def bilinear_kernel() -> Initializer:
    """Initial values of a transposed convolution: the bilinear hat, each channel to itself.

    The kernel is `[k, k, 1, c]` (depthwise) or `[k, k, n, c]`, where the hat stands on the diagonal of n and c.
    """

    def initializer(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        del key
        rows, columns, n, c = shape
        hat = jnp.asarray(np.outer(bilinear_weights(rows), bilinear_weights(columns)))
        channels = jnp.eye(n, c) if n > 1 else jnp.ones((1, c))
        return (hat[:, :, None, None] * channels).astype(dtype)

    return initializer


class Upsample(nn.Module):
    """Enlarges a feature map to a stated size.

    | method           | what it does                                                    | parameters           |
    |------------------|-----------------------------------------------------------------|----------------------|
    | bilinear         | resize with `alignment`                                         | none                 |
    | nearest          | resize with `alignment`                                         | none                 |
    | transposed       | transposed convolution with stride `factor`                     | kernel, bias if asked |
    | fixed_transposed | the same with the constant bilinear kernel, channel by channel  | none                 |
    | bed_of_nails     | each value at the upper left of its `factor` x `factor` window  | none                 |
    | unpool           | each value at the position that max pooling found it at         | none                 |

    Attributes:
      method: one of the table.
      factor: the stride; the window's side for the last two.
      alignment: "half_pixel" or "align_corners".
      features: output channels of "transposed"; 0 keeps the input's.
      kernel_size: of the transposed ones; 0 takes `2 factor - factor % 2`, the smallest that is bilinear.
      offset: row and column of the whole transposed result that becomes the first; None takes `(kernel - factor) // 2`,
        which centres it.
      depthwise: "transposed" with one kernel a channel instead of a dense one.
      initial_kernel: "bilinear" (arXiv 1411.4038) or "he".
      frozen: no gradient reaches the kernel. Weight decay would: give the optimiser a rule with `freeze` as well.
      use_bias: of "transposed".
      dtype: of the computation and of the result.
    """

    method: str = "bilinear"
    factor: int = 2
    alignment: str = "half_pixel"
    features: int = 0
    kernel_size: int = 0
    offset: int | None = None
    depthwise: bool = False
    initial_kernel: str = "bilinear"
    frozen: bool = False
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self) -> None:
        for option, known in (("method", METHODS), ("alignment", ALIGNMENTS), ("initial_kernel", INITIAL_KERNELS)):
            if getattr(self, option) not in known:
                raise JaxsegError(f"Upsample: {option} = {getattr(self, option)!r} is not one of {', '.join(known)}.")
        if self.factor < 1:
            raise JaxsegError(f"Upsample: factor = {self.factor} must be positive.")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, size: Sequence[int] | None = None, *, indices: jax.Array | None = None
    ) -> jax.Array:
        """Enlarges `[*b, h, w, c]`.

        Args:
          x: floating.
          size: (height, width) of the result; None: `factor` times the input's.
          indices: of max pooling, for "unpool".

        Returns:
          `[*b, height, width, c]`, or `features` channels.

        Raises:
          JaxsegError: "unpool" without indices, or indices for another method.
        """
        x = x.astype(self.dtype)
        target = (x.shape[-3] * self.factor, x.shape[-2] * self.factor) if size is None else (size[0], size[1])
        if (indices is not None) != (self.method == "unpool"):
            what = "needs the indices of max pooling" if indices is None else "takes no indices"
            raise JaxsegError(f"Upsample: method {self.method!r} {what}.")
        if self.method in ("bilinear", "nearest"):
            return resize(x, target, alignment=self.alignment, method=self.method)
        if self.method in ("unpool", "bed_of_nails"):
            places = jnp.zeros(x.shape, jnp.int8) if indices is None else indices
            return unpool(x, places, target, window=self.factor)
        k = self.kernel_size or 2 * self.factor - self.factor % 2
        offset = max(k - self.factor, 0) // 2 if self.offset is None else self.offset
        if self.method == "fixed_transposed":
            return bilinear_conv_transpose(x, kernel_size=k, strides=self.factor, padding=offset, size=target)
        return self._transposed(x, target, k, offset)

    def _transposed(self, x: jax.Array, size: Sequence[int], k: int, offset: int) -> jax.Array:
        c = x.shape[-1]
        features = self.features or c
        if self.depthwise and features != c:
            raise JaxsegError(
                f"Upsample: depthwise keeps the {c} channels; features = {features} needs a dense kernel."
            )
        # Each output pixel sees about (k / factor)^2 input pixels: that is the fan-in.
        reach = max(k / self.factor, 1.0) ** 2 * (1 if self.depthwise else c)
        he = nn.initializers.normal((2 / reach) ** 0.5)
        initial = bilinear_kernel() if self.initial_kernel == "bilinear" else he
        kernel = self.param("kernel", initial, (k, k, 1 if self.depthwise else features, c), jnp.float32)
        if self.frozen:
            kernel = jax.lax.stop_gradient(kernel)
        groups = c if self.depthwise else 1
        kernel = kernel.astype(self.dtype)
        y = conv_transpose(x, kernel, strides=self.factor, padding=offset, size=size, groups=groups)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (features,), jnp.float32)
            y = gradient_written(y + bias.astype(self.dtype))
        return y
