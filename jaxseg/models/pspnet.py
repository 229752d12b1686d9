"""PSPNet: pyramid scene parsing (Zhao et al. 2016, arXiv 1612.01105).

Differences from the paper: bins adapt to the feature map, as in the authors' PyTorch code; at a map of 60 x 60 (crop
473) they are the Caffe release's fixed windows. Images need not be 8 k + 1 pixels.
Variant: segmentation_models_pytorch ends the backbone at stride 8 instead of dilating it, has a bias for batch norm at
the level of one bin, fuses by 1x1, classifies by 3x3 and drops whole channels: `single_bin_norm=False,
fusion_kernel_size=1, classifier_kernel_size=3, channel_dropout=True, dropout_rate=0.2, backbone_options={"stem":
"conv7", "stop_at_output_stride": True}`, `pyramid_channels` a quarter of the backbone's deepest.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.errors import JaxsegError
from jaxseg.core.types import Outputs
from jaxseg.layers.conv_norm import Conv, ConvNorm, classifier_normal
from jaxseg.layers.dropout import Dropout
from jaxseg.layers.heads import AuxiliaryHead, enlarged
from jaxseg.layers.image import check_image, check_output_stride
from jaxseg.layers.norm import NormOptions
from jaxseg.layers.pyramid_pooling import PyramidPooling
from jaxseg.layers.trunk import make_trunk, taps_of

OUTPUT_STRIDES = (8, 16, 32)
STEM = {"stem": "deep", "dilate_first_unit": True}


class PSPNet(nn.Module):
    """See `build`."""

    backbone: nn.Module
    pooling: PyramidPooling
    fusion: ConvNorm
    num_classes: int
    deepest: str
    dropout_rate: float = 0.1
    channel_dropout: bool = False
    classifier_kernel_size: int = 1
    aux: AuxiliaryHead | None = None
    alignment: str = "align_corners"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """`[*b, h, w, 3]` -> `logits` float32 at the input's size, taps `pyramid`, `fusion`, `backbone/<name>`."""
        check_image(image, model="pspnet")
        size = image.shape[-3:-1]
        features = self.backbone(image.astype(self.dtype), train)
        pyramid = self.pooling(features[self.deepest], train)
        fused = self.fusion(pyramid, train)
        whole = (-3, -2) if self.channel_dropout else ()
        x = Dropout(self.dropout_rate, whole, deterministic=not train, name="dropout")(fused)
        scores: dict[str, Any] = {"use_bias": True, "kernel_init": classifier_normal(), "name": "classifier"}
        low_logits = Conv(self.num_classes, self.classifier_kernel_size, **scores)(x)
        outputs = taps_of(features) | {"pyramid": pyramid, "fusion": fused, "low_logits": low_logits}
        outputs |= enlarged("logits", low_logits, size, alignment=self.alignment)
        if self.aux is not None:
            outputs |= self.aux(features, size, train)
        return outputs


def build(
    *,
    num_classes: int,
    backbone: str = "resnet50",
    backbone_options: Mapping[str, Any] | None = None,
    output_stride: int = 8,
    bins: Sequence[int] = (1, 2, 3, 6),
    pyramid_channels: int = 512,
    single_bin_norm: bool = True,
    fusion_channels: int = 512,
    fusion_kernel_size: int = 3,
    classifier_kernel_size: int = 1,
    dropout_rate: float = 0.1,
    channel_dropout: bool = False,
    alignment: str = "align_corners",
    aux_tap: str = "",
    aux_channels: int = 256,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    freeze_norm: bool = False,
    freeze_backbone_norm: bool = False,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """PSPNet.

    Args:
      num_classes: classes, void not counted.
      backbone: name of a module of jaxseg.backbones; a ResNet takes the deep stem and the rates of the authors' code
        unless `backbone_options` say otherwise.
      backbone_options: further options of its build().
      output_stride: 8 is the paper's.
      bins: rows and columns of the pyramid's levels.
      pyramid_channels: channels of each level.
      single_bin_norm: batch norm on the level of one bin too; False: a bias instead.
      fusion_channels, fusion_kernel_size: of the convolution behind the pyramid.
      classifier_kernel_size: of the last convolution.
      dropout_rate: before the classifiers.
      channel_dropout: drop whole channels before the main classifier instead of single values.
      alignment: of all resizing; the authors' is "align_corners", which is exact for images of 8 k + 1 pixels.
      aux_tap: the backbone's tap of the auxiliary head (the paper: "stage3", with loss weight 0.4); "" for none.
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
      JaxsegError: unknown backbone or option, impossible output stride, kernels of even size.
    """
    if fusion_kernel_size % 2 == 0 or classifier_kernel_size % 2 == 0:
        raise JaxsegError(
            f"pspnet: fusion_kernel_size = {fusion_kernel_size} and classifier_kernel_size = {classifier_kernel_size} "
            "must be odd."
        )
    check_output_stride(output_stride, allowed=OUTPUT_STRIDES, model="pspnet")
    shared: dict[str, Any] = {"norm": NormOptions(norm_momentum, norm_epsilon, freeze_norm), "dtype": dtype}
    trunk = make_trunk(
        backbone,
        backbone_options,
        output_stride=output_stride,
        norm_momentum=norm_momentum,
        freeze_norm=freeze_norm or freeze_backbone_norm,
        remat=remat,
        dtype=dtype,
        **(STEM if backbone.startswith("resnet") else {}),
    )
    return PSPNet(
        backbone=trunk,
        pooling=PyramidPooling(pyramid_channels, tuple(bins), alignment, False, single_bin_norm, **shared),
        fusion=ConvNorm(fusion_channels, fusion_kernel_size, **shared),
        num_classes=num_classes,
        deepest=f"s{output_stride}",
        dropout_rate=dropout_rate,
        channel_dropout=channel_dropout,
        classifier_kernel_size=classifier_kernel_size,
        aux=AuxiliaryHead(num_classes, aux_tap, aux_channels, dropout_rate, alignment, **shared) if aux_tap else None,
        alignment=alignment,
        dtype=dtype,
    )
