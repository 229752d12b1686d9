"""LR-ASPP: the segmentation head of MobileNetV3 (Howard et al. 2019, arXiv 1905.02244, section 6.4), as torchvision's.

The deepest map goes through a 1x1 convolution with batch norm and ReLU, times a gate (mean over all pixels, 1x1
convolution, sigmoid), is resized to stride 8, and its classifier's logits are added to those of the stride-8 map.

Differences from the paper: the gate's mean runs over all pixels (the paper: 49 x 49 windows with stride 16), as in
torchvision.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.names import call_with_options, resolve
from jaxseg.core.types import Outputs
from jaxseg.layers.conv_norm import Conv, ConvNorm
from jaxseg.layers.heads import check_tap, enlarged
from jaxseg.layers.image import check_image, check_output_stride
from jaxseg.layers.norm import NormOptions
from jaxseg.ops.resize import resize

OUTPUT_STRIDES = (8, 16, 32)


class LRASPP(nn.Module):
    """See `build`."""

    backbone: nn.Module
    num_classes: int
    low_level: str
    deepest: str
    channels: int = 128
    alignment: str = "half_pixel"
    norm: NormOptions = NormOptions()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """`[*b, h, w, 3]` -> `logits` `[*b, h, w, classes]` float32, `low_logits` of stride 8, taps."""
        check_image(image, model="lraspp")
        features = self.backbone(image.astype(self.dtype), train)
        check_tap(features, self.low_level, option="low_level")
        low, high = features[self.low_level], features[self.deepest]
        x = ConvNorm(self.channels, norm=self.norm, dtype=self.dtype, name="conv")(high, train)
        mean = jnp.mean(high, axis=(-3, -2), keepdims=True, dtype=jnp.float32).astype(self.dtype)
        x = x * nn.sigmoid(Conv(self.channels, dtype=self.dtype, name="gate")(mean))
        x = resize(x, low.shape[-3:-1], alignment=self.alignment)
        low_logits = Conv(self.num_classes, use_bias=True, name="low_classifier")(low)
        low_logits = low_logits + Conv(self.num_classes, use_bias=True, name="high_classifier")(x)
        outputs = {f"backbone/{name}": value for name, value in features.items()}
        outputs |= {"gated": x, "low_logits": low_logits}
        outputs |= enlarged("logits", low_logits, image.shape[-3:-1], alignment=self.alignment)
        return outputs


def build(
    *,
    num_classes: int,
    backbone: str = "mobilenet_v3_large",
    backbone_options: Mapping[str, Any] | None = None,
    output_stride: int = 16,
    low_level: str = "c2",
    channels: int = 128,
    alignment: str = "half_pixel",
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    freeze_norm: bool = False,
    freeze_backbone_norm: bool = False,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """LR-ASPP.

    Args:
      num_classes: classes, void not counted.
      backbone: name of a module of jaxseg.backbones.
      backbone_options: further options of its build().
      output_stride: 8, 16 or 32.
      low_level: the backbone's tap of the shallow branch; "c2" is torchvision's (MobileNetV3-large, stride 8).
      channels: of the deep branch.
      alignment: of all resizing, "half_pixel" (torchvision) or "align_corners".
      norm_momentum: of every batch norm.
      norm_epsilon: of the head's batch norm; the backbone has its own.
      freeze_norm: running statistics everywhere, in training too.
      freeze_backbone_norm: the same for the backbone alone.
      remat: recompute the backbone's blocks in the backward pass.
      dtype: of the computation; parameters and logits are float32.

    Returns:
      A module, `module.apply(variables, image, train)`.

    Raises:
      JaxsegError: unknown backbone or option, impossible output stride.
    """
    check_output_stride(output_stride, allowed=OUTPUT_STRIDES, model="lraspp")
    extractor = call_with_options(
        resolve("backbones", backbone),
        dict(backbone_options or {}),
        where="config.model.backbone_options",
        output_stride=output_stride,
        norm_momentum=norm_momentum,
        freeze_norm=freeze_norm or freeze_backbone_norm,
        remat=remat,
        dtype=dtype,
    )
    return LRASPP(
        backbone=extractor,
        num_classes=num_classes,
        low_level=low_level,
        deepest=f"s{output_stride}",
        channels=channels,
        alignment=alignment,
        norm=NormOptions(norm_momentum, norm_epsilon, freeze_norm),
        dtype=dtype,
    )
