"""The FCN of torchvision: an atrous ResNet with a small head, after Long et al. 2015 (arXiv 1411.4038).

Backbone at output stride 8, 3x3 convolution to a quarter of its channels, batch norm, ReLU, dropout 0.1, 1x1
classifier, bilinear to the image's size; an auxiliary head of the same form on stage 3.

Differences from the paper: all of the above; no skips, no padding of 100, no transposed convolution. See
`jaxseg.models.fcn` for the paper's networks.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.names import call_with_options, resolve
from jaxseg.core.types import Outputs
from jaxseg.layers.heads import AuxiliaryHead
from jaxseg.layers.image import check_image, check_output_stride
from jaxseg.layers.norm import NormOptions

OUTPUT_STRIDES = (8, 16, 32)


class FCNResNet(nn.Module):
    """See `build`."""

    backbone: nn.Module
    head: AuxiliaryHead
    aux: AuxiliaryHead | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """`[*b, h, w, 3]` -> `logits` `[*b, h, w, classes]` float32, taps `backbone/<name>`."""
        check_image(image, model="fcn_resnet")
        size = image.shape[-3:-1]
        features = self.backbone(image.astype(self.dtype), train)
        outputs: Outputs = {f"backbone/{name}": value for name, value in features.items()}
        outputs |= self.head(features, size, train)
        if self.aux is not None:
            outputs |= self.aux(features, size, train)
        return outputs


def build(
    *,
    num_classes: int,
    backbone: str = "resnet50",
    backbone_options: Mapping[str, Any] | None = None,
    output_stride: int = 8,
    head_channels: int = 0,
    dropout_rate: float = 0.1,
    alignment: str = "half_pixel",
    aux_tap: str = "",
    aux_channels: int = 0,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    freeze_norm: bool = False,
    freeze_backbone_norm: bool = False,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """torchvision's FCN.

    Args:
      num_classes: classes, void not counted.
      backbone: name of a module of jaxseg.backbones; torchvision has resnet50 and resnet101.
      backbone_options: further options of its build().
      output_stride: 8, 16 or 32.
      head_channels: hidden channels of the head; 0 takes a quarter of the backbone's.
      dropout_rate: before both classifiers.
      alignment: of the up-sampling, "half_pixel" (torchvision) or "align_corners".
      aux_tap: the backbone's tap of an auxiliary head with logits `aux/backbone` (torchvision: "stage3"); "" for none.
      aux_channels: its hidden channels; 0 takes a quarter of the tap's.
      norm_momentum: of every batch norm.
      norm_epsilon: of the batch norms of the heads; the backbone has its own.
      freeze_norm: running statistics everywhere, in training too.
      freeze_backbone_norm: the same for the backbone alone.
      remat: recompute the backbone's blocks in the backward pass.
      dtype: of the computation; parameters and logits are float32.

    Returns:
      A module, `module.apply(variables, image, train)`.

    Raises:
      JaxsegError: unknown backbone or option, impossible output stride.
    """
    check_output_stride(output_stride, allowed=OUTPUT_STRIDES, model="fcn_resnet")
    fixed: dict[str, Any] = {
        "output_stride": output_stride,
        "norm_momentum": norm_momentum,
        "freeze_norm": freeze_norm or freeze_backbone_norm,
        "remat": remat,
        "dtype": dtype,
    }
    extractor = call_with_options(
        resolve("backbones", backbone), dict(backbone_options or {}), where="config.model.backbone_options", **fixed
    )
    shared: dict[str, Any] = {
        "dropout_rate": dropout_rate,
        "alignment": alignment,
        "norm": NormOptions(norm_momentum, norm_epsilon, freeze_norm),
        "dtype": dtype,
    }
    aux = AuxiliaryHead(num_classes, aux_tap, aux_channels, **shared) if aux_tap else None
    head = AuxiliaryHead(num_classes, f"s{output_stride}", head_channels, output="logits", **shared)
    return FCNResNet(backbone=extractor, head=head, aux=aux, dtype=dtype)
