"""UPerNet: unified perceptual parsing (Xiao et al. 2018, arXiv 1807.10221), its head for semantic segmentation.

Differences from the paper: of its five heads (scene, object, part, material, texture) this is the one for objects, as
in the authors' network for ADE20K; pooling is adaptive average pooling, where the paper's code crops with PrRoIPool.
Variant: segmentation_models_pytorch puts a layer norm on each of the backbone's maps and resizes pooled maps after
their convolution: `feature_norm=True, pool_resize_first=False, logits_alignment="align_corners"`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.types import Outputs
from jaxseg.layers.conv_norm import Conv, ConvNorm, classifier_normal
from jaxseg.layers.dropout import Dropout
from jaxseg.layers.heads import AuxiliaryHead, enlarged
from jaxseg.layers.image import check_image
from jaxseg.layers.norm import NormOptions
from jaxseg.layers.pyramid_pooling import PyramidPooling
from jaxseg.layers.trunk import make_trunk, taps_of
from jaxseg.ops.resize import resize

LEVELS = ("s4", "s8", "s16", "s32")
STEM = {"stem": "deep"}


class FeaturePyramid(nn.Module):
    """Lateral 1x1 convolutions, sums from the coarsest level to the finest, a 3x3 convolution on each sum."""

    features: int
    alignment: str
    norm: NormOptions = NormOptions()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, levels: Sequence[jax.Array], top: jax.Array, train: bool) -> list[jax.Array]:
        """`levels` from fine to coarse, `top` beyond them -> as many maps as levels and top, from fine to coarse."""
        shared: dict[str, Any] = {"norm": self.norm, "dtype": self.dtype}
        found, above = [top], top
        for i in reversed(range(len(levels))):
            lateral = ConvNorm(self.features, name=f"lateral{i + 1}", **shared)(levels[i], train)
            above = lateral + resize(above, lateral.shape[-3:-1], alignment=self.alignment)
            found.append(ConvNorm(self.features, 3, name=f"smooth{i + 1}", **shared)(above, train))
        return found[::-1]


class UPerNet(nn.Module):
    """See `build`."""

    backbone: nn.Module
    pooling: PyramidPooling
    bottleneck: ConvNorm
    pyramid: FeaturePyramid
    fusion: ConvNorm
    num_classes: int
    dropout_rate: float = 0.0
    aux: AuxiliaryHead | None = None
    feature_norm: bool = False
    alignment: str = "half_pixel"
    logits_alignment: str = "half_pixel"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """`[*b, h, w, 3]` -> `logits` float32 at the input's size, taps `pyramid1` .. `pyramid4`, `fusion`."""
        check_image(image, model="upernet")
        size = image.shape[-3:-1]
        features = self.backbone(image.astype(self.dtype), train)
        *levels, deepest = (self._level(features, i) for i in range(len(LEVELS)))
        top = self.bottleneck(self.pooling(deepest, train), train)
        maps = self.pyramid(levels, top, train)
        finest = maps[0].shape[-3:-1]
        stacked = jnp.concatenate([resize(m, finest, alignment=self.alignment) for m in maps], axis=-1)
        fused = self.fusion(stacked, train)
        x = Dropout(self.dropout_rate, deterministic=not train, name="dropout")(fused)
        low_logits = Conv(self.num_classes, use_bias=True, kernel_init=classifier_normal(), name="classifier")(x)
        outputs = taps_of(features) | {f"pyramid{i + 1}": m for i, m in enumerate(maps)}
        outputs |= {"fusion": fused, "low_logits": low_logits}
        outputs |= enlarged("logits", low_logits, size, alignment=self.logits_alignment)
        if self.aux is not None:
            outputs |= self.aux(features, size, train)
        return outputs

    def _level(self, features: dict[str, jax.Array], i: int) -> jax.Array:
        """The backbone's map for a level, with its layer norm over channels where there is one."""
        if not self.feature_norm:
            return features[LEVELS[i]]
        norm = nn.LayerNorm(1e-6, use_fast_variance=False, dtype=self.dtype, name=f"feature_norm{i + 1}")
        return norm(features[LEVELS[i]])


def build(
    *,
    num_classes: int,
    backbone: str = "resnet50",
    backbone_options: Mapping[str, Any] | None = None,
    bins: Sequence[int] = (1, 2, 3, 6),
    pyramid_channels: int = 512,
    fpn_channels: int = 512,
    dropout_rate: float = 0.0,
    feature_norm: bool = False,
    pool_resize_first: bool = True,
    alignment: str = "half_pixel",
    logits_alignment: str = "",
    aux_tap: str = "",
    aux_channels: int = 256,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    freeze_norm: bool = False,
    freeze_backbone_norm: bool = False,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """UPerNet.

    Args:
      num_classes: classes, void not counted.
      backbone: name of a module of jaxseg.backbones that gives s4, s8, s16 and s32; a ResNet takes the deep stem unless
        `backbone_options` say otherwise.
      backbone_options: further options of its build().
      bins: rows and columns of the pooling pyramid's levels.
      pyramid_channels: channels of each of them.
      fpn_channels: channels of the feature pyramid; 512, or 256 ("upernet_lite").
      dropout_rate: before the classifiers; the authors use none.
      feature_norm: layer norm over the channels of each of the backbone's maps, epsilon 1e-6.
      pool_resize_first: resize the pooled maps before their 1x1 convolutions (the authors) or after them.
      alignment: of all resizing; the authors' is "half_pixel".
      logits_alignment: of the last resize, to the image's size; "" as `alignment`.
      aux_tap: the backbone's tap of an auxiliary head; "" for none.
      aux_channels: its hidden channels.
      norm_momentum: of every batch norm.
      norm_epsilon: of the heads' batch norms.
      freeze_norm: running statistics everywhere, in training too.
      freeze_backbone_norm: the same for the backbone alone.
      remat: recompute the backbone's blocks in the backward pass.
      dtype: of the computation; parameters and logits are float32.

    Returns:
      A module, `module.apply(variables, image, train)`.

    Raises:
      JaxsegError: unknown backbone or option.
    """
    shared: dict[str, Any] = {"norm": NormOptions(norm_momentum, norm_epsilon, freeze_norm), "dtype": dtype}
    trunk = make_trunk(
        backbone,
        backbone_options,
        output_stride=32,
        norm_momentum=norm_momentum,
        freeze_norm=freeze_norm or freeze_backbone_norm,
        remat=remat,
        dtype=dtype,
        **(STEM if backbone.startswith("resnet") else {}),
    )
    return UPerNet(
        backbone=trunk,
        pooling=PyramidPooling(pyramid_channels, tuple(bins), alignment, pool_resize_first, **shared),
        bottleneck=ConvNorm(fpn_channels, 3, **shared),
        pyramid=FeaturePyramid(fpn_channels, alignment, **shared),
        fusion=ConvNorm(fpn_channels, 3, **shared),
        num_classes=num_classes,
        dropout_rate=dropout_rate,
        aux=AuxiliaryHead(num_classes, aux_tap, aux_channels, dropout_rate, alignment, **shared) if aux_tap else None,
        feature_norm=feature_norm,
        alignment=alignment,
        logits_alignment=logits_alignment or alignment,
        dtype=dtype,
    )
