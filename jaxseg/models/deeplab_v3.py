"""DeepLab v3: rethinking atrous convolution (Chen et al. 2017, arXiv 1706.05587).

Differences from the paper: ASPP's concatenation has image pooling first, as in TensorFlow's release. Two published
forms are options: torchvision's (`head_convolution=True`, `alignment="half_pixel"`, `output_stride=8`) and TF-slim's
MobileNetV2 (`aspp_rates=()`, `norm_epsilon=1e-3`: no 3x3 branches, no decoder).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.types import Outputs
from jaxseg.layers.aspp import ASPP
from jaxseg.layers.conv_norm import Conv, ConvNorm, classifier_normal
from jaxseg.layers.heads import AuxiliaryHead, enlarged, rates_at
from jaxseg.layers.image import check_image, check_output_stride
from jaxseg.layers.norm import NormOptions
from jaxseg.layers.trunk import make_trunk, taps_of

OUTPUT_STRIDES = (8, 16, 32)


class DeepLabV3(nn.Module):
    """See `build`."""

    backbone: nn.Module
    aspp: ASPP
    num_classes: int
    deepest: str
    head: ConvNorm | None = None
    aux: AuxiliaryHead | None = None
    alignment: str = "align_corners"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """`[*b, h, w, 3]` -> `logits` float32 at the input's size, `low_logits` before up-sampling, taps."""
        check_image(image, model="deeplab_v3")
        size = image.shape[-3:-1]
        features = self.backbone(image.astype(self.dtype), train)
        encoded = self.aspp(features[self.deepest], train)
        x = encoded if self.head is None else self.head(encoded, train)
        low_logits = Conv(self.num_classes, use_bias=True, kernel_init=classifier_normal(), name="classifier")(x)
        outputs = taps_of(features)
        outputs |= {"aspp": encoded, "low_logits": low_logits}
        outputs |= enlarged("logits", low_logits, size, alignment=self.alignment)
        if self.aux is not None:
            outputs |= self.aux(features, size, train)
        return outputs


def build(
    *,
    num_classes: int,
    backbone: str = "resnet50",
    backbone_options: Mapping[str, Any] | None = None,
    output_stride: int = 16,
    aspp_rates: Sequence[int] = (6, 12, 18),
    aspp_channels: int = 256,
    image_pooling: bool = True,
    separable: bool = False,
    head_convolution: bool = False,
    dropout_rate: float = 0.1,
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
    """DeepLab v3.

    Args:
      num_classes: classes, void not counted.
      backbone: name of a module of jaxseg.backbones.
      backbone_options: further options of its build(), for example {"multi_grid": (1, 2, 4)}.
      output_stride: 8, 16 or 32.
      aspp_rates: atrous rates at output stride 16; doubled at 8, halved at 32. () leaves the 3x3 branches out.
      aspp_channels: channels of each branch and of the result.
      image_pooling: the branch of the global mean.
      separable: depthwise separable 3x3 branches.
      head_convolution: one more 3x3 convolution before the classifier (torchvision).
      dropout_rate: after ASPP.
      alignment: of the up-sampling, "align_corners" (TensorFlow's release) or "half_pixel" (torchvision).
      aux_tap: the backbone's tap of an auxiliary head with logits `aux/backbone` (torchvision: "stage3"); "" for none.
      aux_channels: its hidden channels.
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
    check_output_stride(output_stride, allowed=OUTPUT_STRIDES, model="deeplab_v3")
    trunk = make_trunk(
        backbone,
        backbone_options,
        output_stride=output_stride,
        norm_momentum=norm_momentum,
        freeze_norm=freeze_norm or freeze_backbone_norm,
        remat=remat,
        dtype=dtype,
    )
    shared: dict[str, Any] = {"norm": NormOptions(norm_momentum, norm_epsilon, freeze_norm), "dtype": dtype}
    rates = rates_at(aspp_rates, output_stride, model="deeplab_v3")
    return DeepLabV3(
        backbone=trunk,
        aspp=ASPP(aspp_channels, rates, separable, image_pooling, dropout_rate, **shared),
        num_classes=num_classes,
        deepest=f"s{output_stride}",
        head=ConvNorm(aspp_channels, 3, **shared) if head_convolution else None,
        aux=AuxiliaryHead(num_classes, aux_tap, aux_channels, dropout_rate, alignment, **shared) if aux_tap else None,
        alignment=alignment,
        dtype=dtype,
    )
