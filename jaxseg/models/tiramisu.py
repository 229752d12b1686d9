"""FC-DenseNet, the One Hundred Layers Tiramisu (Jégou et al. 2016, arXiv 1611.09326).

Differences from the paper: none in the layers. The paper's table 3 prints stack sizes that are 16 too small from the
bottleneck on (880, 1072, 800, ...), as its authors acknowledge; here they are 896, 1088, 816, 576, 384, 256. Images of
a size that 32 does not divide are taken too: a transposed convolution gives one row and column more than twice its
input, and its result is cropped to the skip.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.errors import JaxsegError
from jaxseg.core.types import Outputs
from jaxseg.layers.conv_norm import Conv
from jaxseg.layers.dense_block import DenseBlock, DenseLayer
from jaxseg.layers.dropout import Dropout
from jaxseg.layers.image import check_image
from jaxseg.layers.norm import NormOptions
from jaxseg.layers.stack import Room, Stack
from jaxseg.layers.upsample import Upsample
from jaxseg.ops.apart import apart, gradient_apart
from jaxseg.ops.pooling import max_pool

PUBLISHED = {
    56: ((4,) * 11, 12),
    67: ((5,) * 11, 16),
    103: ((4, 5, 7, 10, 12, 15, 12, 10, 7, 5, 4), 16),
}
UP: dict[str, Any] = {"kernel_size": 3, "offset": 0, "initial_kernel": "he", "use_bias": True}
HE_UNIFORM = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")


class NormConv(DenseLayer):
    """Batch norm, ReLU, convolution with bias, dropout: the paper's layer; and 2x2 max pooling, its transition down."""

    features: int
    kernel_size: int = 3
    pool: bool = False
    dropout_rate: float = 0.2
    norm: NormOptions = NormOptions()
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        super().setup()
        shared: dict[str, Any] = {"use_bias": True, "kernel_init": HE_UNIFORM, "dtype": self.dtype}
        self.conv = Conv(self.features, self.kernel_size, **shared)
        self.dropout = Dropout(self.dropout_rate)

    def grow(self, x: jax.Array, train: bool) -> jax.Array:
        """`[*b, h, w, c]` rectified -> `[*b, h', w', features]`."""
        x = self.conv(x)
        witness: jax.Array = self.conv.get_variable("params", "bias")[0]
        # At test the map is made by both threads, and then written into its room by one.
        x = gradient_apart(x, witness) if train or self.pool else apart(x, witness)
        x = self.dropout(x, deterministic=not train)
        if self.pool:
            x = gradient_apart(max_pool(x, 2), witness)
        return x


class Tiramisu(nn.Module):
    """See `build`."""

    num_classes: int
    layers: tuple[int, ...]
    growth_rate: int
    first_channels: int
    dropout_rate: float
    norm: NormOptions
    remat: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """`[*b, h, w, 3]` -> `logits` `[*b, h, w, classes]` float32, taps `down1` .. , `bottleneck`, `up1` .. ."""
        levels = len(self.layers) // 2
        check_image(image, model="tiramisu", min_size=2**levels)
        shared: dict[str, Any] = {"dropout_rate": self.dropout_rate, "norm": self.norm, "dtype": self.dtype}
        layer = functools.partial(NormConv, self.growth_rate, **shared)
        block = functools.partial(DenseBlock, layer, growth=self.growth_rate, remat=self.remat)
        first = Conv(self.first_channels, 3, use_bias=True, kernel_init=HE_UNIFORM, dtype=self.dtype, name="first")
        made = [layers * self.growth_rate for layers in self.layers]
        in_room = not train and not self.norm.batch_at_test
        x, skips, outputs = first(image), [], {}
        for i in range(levels):
            # The skip's array has room for what comes to it on the way up: maps enlarged, and those of the block there.
            room = {"before": made[-2 - i], "after": made[i] + made[-1 - i]}
            stack = Room.around(x, **room) if in_room else Stack.of(x)
            stack = block(self.layers[i], name=f"down{i + 1}")(stack, train)
            outputs[f"down{i + 1}"] = stack.whole()
            channels = outputs[f"down{i + 1}"].shape[-1]
            x, skip = NormConv(channels, 1, True, name=f"transition_down{i + 1}", **shared)(stack, train)
            skips.append(skip)
        stack = Room.around(x, before=0, after=made[levels]) if in_room else Stack.of(x)
        stack = block(self.layers[levels], name="bottleneck")(stack, train)
        x = outputs["bottleneck"] = stack.whole()
        for i, skip in enumerate(reversed(skips)):
            new = stack.last(made[levels + i])
            up = Upsample("transposed", 2, name=f"transition_up{i + 1}", features=new.shape[-1], **UP, dtype=self.dtype)
            # Twice the size plus one: the last row and column are cropped where the skip is even.
            stack = skip.preceded_by(up(new, skip.pieces[0].shape[-3:-1]))
            stack = block(self.layers[levels + 1 + i], name=f"up{i + 1}")(stack, train)
            x = outputs[f"up{i + 1}"] = stack.whole()
        classifier = Conv(self.num_classes, use_bias=True, kernel_init=HE_UNIFORM, name="classifier")
        return outputs | {"logits": classifier(x)}


def build(
    *,
    num_classes: int,
    depth: int = 103,
    layers: Sequence[int] = (),
    growth_rate: int = 0,
    first_channels: int = 48,
    dropout_rate: float = 0.2,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-4,
    freeze_norm: bool = False,
    batch_norm_at_test: str = "running",
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """FC-DenseNet.

    Args:
      num_classes: classes, void not counted.
      depth: 56, 67 or 103, the published networks.
      layers: layers of each dense block, down, bottleneck, up (an odd number of blocks); () takes those of `depth`.
      growth_rate: feature maps that a layer adds; 0 takes that of `depth`.
      first_channels: feature maps of the first convolution.
      dropout_rate: in every layer and transition, in training only.
      norm_momentum, norm_epsilon: of every batch norm (the authors' Lasagne code: 0.9 and 1e-4).
      freeze_norm: running statistics in training too.
      batch_norm_at_test: "running", or "batch": the test batch's own statistics, as the authors evaluate; results then
        depend on what is batched together.
      remat: recompute each layer in the backward pass instead of storing what its convolution reads: of a layer only
        its growth channels remain.
      dtype: of the computation; parameters and logits are float32.

    Returns:
      A module, `module.apply(variables, image, train)`; images of at least 2^5 = 32 pixels a side.

    Raises:
      JaxsegError: a depth that was not published, or an even number of blocks.
    """
    if depth not in PUBLISHED:
        raise JaxsegError(f"tiramisu: depth = {depth} was not published; it is one of 56, 67, 103. Or give layers.")
    if batch_norm_at_test not in ("running", "batch"):
        raise JaxsegError(f'tiramisu: batch_norm_at_test = {batch_norm_at_test!r} is not "running" or "batch".')
    published_layers, published_growth = PUBLISHED[depth]
    blocks = tuple(layers) or published_layers
    if len(blocks) % 2 == 0 or min(blocks) < 1:
        raise JaxsegError(f"tiramisu: layers = {blocks} must be an odd number of blocks, each of at least one layer.")
    return Tiramisu(
        num_classes=num_classes,
        layers=blocks,
        growth_rate=growth_rate or published_growth,
        first_channels=first_channels,
        dropout_rate=dropout_rate,
        norm=NormOptions(norm_momentum, norm_epsilon, freeze_norm, batch_norm_at_test == "batch"),
        remat=remat,
        dtype=dtype,
    )
