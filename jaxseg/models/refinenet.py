"""RefineNet: multi-path refinement (Lin et al. 2016, arXiv 1611.06612).

Variants: the paper chains two poolings, pooling before convolution, and puts one residual unit behind each block, three
behind the last (`crp_blocks=2`, `output_units=(3, 1, 1, 1)`); the released MATLAB networks chain four, convolution
first (`crp_blocks=4`, `crp_order="conv_pool"`); the public PyTorch weights four, pooling first, and three units
everywhere, which is the default here.
Differences from the paper: up-sampling is bilinear, where the authors' is MATLAB's bicubic imresize; the coarser path
comes to the fusion without residual units of its own, as in the PyTorch networks, because it leaves some behind it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.errors import JaxsegError
from jaxseg.core.types import Outputs
from jaxseg.layers.conv_norm import Conv
from jaxseg.layers.dropout import Dropout
from jaxseg.layers.heads import enlarged
from jaxseg.layers.image import check_image
from jaxseg.layers.trunk import make_trunk, taps_of
from jaxseg.ops.pooling import max_pool
from jaxseg.ops.resize import resize

LEVELS = ("s4", "s8", "s16", "s32")
ORDERS = ("pool_conv", "conv_pool")
NORMAL = nn.initializers.normal(0.01)


class ResidualUnits(nn.Module):
    """`x + conv3x3(ReLU(conv3x3(ReLU(x))))`, a few times; a bias on the first convolution."""

    units: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[*b, h, w, c] -> [*b, h, w, c]`."""
        shared: dict[str, Any] = {"kernel_init": NORMAL, "dtype": self.dtype}
        for i in range(self.units):
            y = Conv(x.shape[-1], 3, use_bias=True, name=f"unit{i + 1}_conv1", **shared)(nn.relu(x))
            x = x + Conv(x.shape[-1], 3, name=f"unit{i + 1}_conv2", **shared)(nn.relu(y))
        return x


class ChainedPooling(nn.Module):
    """ReLU, then a chain of 5x5 max-poolings and 3x3 convolutions, each link added to the sum."""

    blocks: int
    order: str = "pool_conv"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[*b, h, w, c] -> [*b, h, w, c]`."""
        total = link = nn.relu(x)
        for i in range(self.blocks):
            conv = Conv(x.shape[-1], 3, kernel_init=NORMAL, dtype=self.dtype, name=f"conv{i + 1}")
            if self.order == "pool_conv":
                link = conv(max_pool(link, 5, strides=1, padding=2))
            else:
                link = max_pool(conv(link), 5, strides=1, padding=2)
            total = total + link
        return total


class RefineBlock(nn.Module):
    """Residual units on the level's features, fusion with the coarser path, chained pooling, residual units."""

    features: int
    crp_blocks: int
    crp_order: str
    output_units: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, level: jax.Array, coarse: jax.Array | None) -> jax.Array:
        """`[*b, h, w, c]`, the coarser block's `[*b, h', w', c']` -> `[*b, h, w, features]`."""
        shared: dict[str, Any] = {"kernel_init": NORMAL, "dtype": self.dtype}
        x = ResidualUnits(2, self.dtype, name="adapt")(Conv(self.features, 3, name="entry", **shared)(level))
        if coarse is not None:
            x = Conv(self.features, 3, name="fuse_fine", **shared)(x)
            coarse = Conv(self.features, 3, name="fuse_coarse", **shared)(coarse)
            x = x + resize(coarse, x.shape[-3:-1], alignment="align_corners")
        x = ChainedPooling(self.crp_blocks, self.crp_order, self.dtype, name="pooling")(x)
        return ResidualUnits(self.output_units, self.dtype, name="output")(x)


class RefineNet(nn.Module):
    """See `build`."""

    backbone: nn.Module
    num_classes: int
    features: tuple[int, ...]
    crp_blocks: int
    crp_order: str
    output_units: tuple[int, ...]
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """`[*b, h, w, 3]` -> `logits` float32 at the input's size, taps `refine1` (fine) .. `refine4`."""
        check_image(image, model="refinenet")
        features = self.backbone(image.astype(self.dtype), train)
        outputs: Outputs = taps_of(features)
        x: jax.Array | None = None
        for i in reversed(range(len(LEVELS))):
            level = features[LEVELS[i]]
            if i >= 2:
                level = Dropout(self.dropout_rate, deterministic=not train, name=f"dropout{i + 1}")(level)
            options = self.features[i], self.crp_blocks, self.crp_order, self.output_units[i], self.dtype
            x = outputs[f"refine{i + 1}"] = RefineBlock(*options, name=f"block{i + 1}")(level, x)
        assert x is not None  # there are levels
        x = Dropout(self.dropout_rate, deterministic=not train, name="dropout")(x)
        low_logits = Conv(self.num_classes, 3, use_bias=True, kernel_init=NORMAL, name="classifier")(x)
        outputs["low_logits"] = low_logits
        return outputs | enlarged("logits", low_logits, image.shape[-3:-1], alignment="align_corners")


def build(
    *,
    num_classes: int,
    backbone: str = "resnet101",
    backbone_options: Mapping[str, Any] | None = None,
    features: Sequence[int] = (256, 256, 256, 512),
    crp_blocks: int = 4,
    crp_order: str = "pool_conv",
    output_units: Sequence[int] = (3, 3, 3, 3),
    dropout_rate: float = 0.5,
    norm_momentum: float = 0.9,
    freeze_norm: bool = True,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """RefineNet.

    Args:
      num_classes: classes, void not counted.
      backbone: name of a module of jaxseg.backbones that gives s4, s8, s16 and s32.
      backbone_options: further options of its build().
      features: channels of the four blocks, from fine to coarse.
      crp_blocks: links of the chained pooling, 2 (paper) or 4.
      crp_order: "pool_conv" or "conv_pool".
      output_units: residual units behind each block, from fine to coarse; the paper's are (3, 1, 1, 1).
      dropout_rate: on the two coarser levels and before the classifier.
      norm_momentum: of the backbone's batch norms; the decoder has none.
      freeze_norm: running statistics in training too, as published.
      remat: recompute the backbone's blocks in the backward pass.
      dtype: of the computation; parameters and logits are float32.

    Returns:
      A module, `module.apply(variables, image, train)`.

    Raises:
      JaxsegError: unknown backbone or option, or not four blocks.
    """
    if crp_order not in ORDERS:
        raise JaxsegError(f"refinenet: crp_order = {crp_order!r} is not one of {', '.join(ORDERS)}.")
    if len(features) != len(LEVELS) or len(output_units) != len(LEVELS) or crp_blocks < 1:
        raise JaxsegError(
            f"refinenet: features = {tuple(features)} and output_units = {tuple(output_units)} take four numbers each, "
            f"crp_blocks = {crp_blocks} at least 1."
        )
    trunk = make_trunk(
        backbone,
        backbone_options,
        output_stride=32,
        norm_momentum=norm_momentum,
        freeze_norm=freeze_norm,
        remat=remat,
        dtype=dtype,
    )
    return RefineNet(
        backbone=trunk,
        num_classes=num_classes,
        features=tuple(features),
        crp_blocks=crp_blocks,
        crp_order=crp_order,
        output_units=tuple(output_units),
        dropout_rate=dropout_rate,
        dtype=dtype,
    )
