"""DenseNet (Huang et al. 2016, arXiv 1608.06993, table 1), bottleneck and compression 0.5 ("DenseNet-BC").

Differences from the paper: none; the layout is torchvision's. Above the output stride a transition keeps its 1x1
convolution, loses its average pooling, and the blocks after it are dilated.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.core.errors import JaxsegError
from jaxseg.layers.conv_norm import Conv, ConvNorm, conv_then_norm
from jaxseg.layers.dense_block import DenseBlock, DenseLayer
from jaxseg.layers.image import check_output_stride
from jaxseg.layers.norm import BatchNorm, NormOptions, StackNorm
from jaxseg.layers.stack import Room, Stack
from jaxseg.ops.pooling import max_pool

# depth: growth rate, channels of the stem, layers of the four dense blocks.
TABLE = {
    121: (32, 64, (6, 12, 24, 16)),
    161: (48, 96, (6, 12, 36, 24)),
    169: (32, 64, (6, 12, 32, 32)),
    201: (32, 64, (6, 12, 48, 32)),
}
OUTPUT_STRIDES = (4, 8, 16, 32)


class BottleneckLayer(DenseLayer):
    """Batch norm, ReLU, 1x1 to four times the growth; the same with 3x3 to the growth."""

    NORM = "norm1"

    growth: int
    dilation: int = 1
    norm: NormOptions = NormOptions()
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        super().setup()
        self.conv1 = Conv(4 * self.growth, dtype=self.dtype)
        self.norm2 = BatchNorm(self.norm, self.dtype)
        self.conv2 = Conv(self.growth, 3, dilation=self.dilation, padding="torch", dtype=self.dtype)

    def grow(self, x: jax.Array, train: bool) -> jax.Array:
        """`[*b, h, w, c]` rectified -> `[*b, h, w, growth]`."""
        return self.conv2(nn.relu(conv_then_norm(self.conv1, self.norm2, x, train)))


class DenseNet(nn.Module):
    """The trunk: no classifier. See `build_densenet` for the attributes."""

    growth: int
    stem: int
    layers: tuple[int, ...]
    output_stride: int = 32
    norm: NormOptions = NormOptions()
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool) -> dict[str, jax.Array]:
        """`[*b, h, w, 3]` -> features by stride, and the taps `block1` .. `block4`."""
        shared: dict[str, Any] = {"norm": self.norm, "dtype": self.dtype}
        x = ConvNorm(self.stem, 7, strides=2, padding="torch", name="stem", **shared)(image, train)
        features = {"stem": x, "s2": x}
        x = max_pool(x, 3, strides=2, padding=1)
        stride, rate = 4, 1
        for block, layers in enumerate(self.layers, start=1):
            stack = Stack.of(x) if train else Room.around(x, before=0, after=layers * self.growth)
            layer = functools.partial(BottleneckLayer, self.growth, rate, **shared)
            stack = DenseBlock(layer, layers, self.growth, self.remat, name=f"block{block}")(stack, train)
            last = block == len(self.layers)
            name = "norm_last" if last else f"transition{block}_norm"
            x, _ = StackNorm(name=name, options=self.norm, dtype=self.dtype)(stack, train)
            features[f"block{block}"] = features[f"s{stride}"] = x
            if not last:
                x = Conv(x.shape[-1] // 2, dtype=self.dtype, name=f"transition{block}_conv")(x)
                if stride * 2 > self.output_stride:
                    rate *= 2
                else:
                    x, stride = _average_pool(x), stride * 2
        return features


def _average_pool(x: jax.Array) -> jax.Array:
    """2x2 means with stride 2; an odd last row or column is left out, but a map of one pixel stays one."""
    for axis in (x.ndim - 3, x.ndim - 2):
        pairs = x.shape[axis] // 2
        if pairs:
            first = lax.slice_in_dim(x, 0, 2 * pairs, 2, axis)
            x = (first + lax.slice_in_dim(x, 1, 2 * pairs, 2, axis)) / 2
    return x


def build_densenet(
    depth: int,
    *,
    output_stride: int = 32,
    growth: int | None = None,
    layers: tuple[int, ...] | None = None,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    freeze_norm: bool = False,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """A DenseNet trunk.

    Args:
      depth: 121, 161, 169 or 201.
      output_stride: 4, 8, 16 or 32.
      growth: channels that each layer adds; None for the paper's (32; 48 in DenseNet-161). The stem has twice as many.
      layers: of the four blocks; None for the paper's.
      norm_momentum, norm_epsilon, freeze_norm: batch norm.
      remat: recompute each layer in the backward pass instead of storing what is inside it: of a layer only its growth
        channels remain.
      dtype: of the computation.

    Returns:
      A module: `module(image, train)` -> {"s2": stem, "s4": block 1, "s8": block 2, ...}, each block after batch norm
      and ReLU (DenseNet-121: 64, 256, 512, 1024, 1024 channels); "block1" .. "block4".
      Average pooling leaves an odd last row or column out: of 65 pixels stride 8 keeps 8, not 9.

    Raises:
      JaxsegError: a depth, an output stride or a number of blocks that it cannot give.
    """
    name = f"densenet{depth}"
    if depth not in TABLE:
        raise JaxsegError(f"{name} does not exist; depths are {', '.join(map(str, TABLE))}.")
    check_output_stride(output_stride, allowed=OUTPUT_STRIDES, model=name)
    layers = TABLE[depth][2] if layers is None else tuple(layers)
    if len(layers) != 4 or min(layers) < 1:
        raise JaxsegError(f"{name}: layers = {layers} must be four positive numbers, one a dense block.")
    return DenseNet(
        growth=growth or TABLE[depth][0],
        stem=2 * growth if growth else TABLE[depth][1],
        layers=layers,
        output_stride=output_stride,
        norm=NormOptions(norm_momentum, norm_epsilon, freeze_norm),
        remat=remat,
        dtype=dtype,
    )
