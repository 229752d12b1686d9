"""DeepLab v3+: encoder-decoder with atrous separable convolution (Chen et al. 2018, arXiv 1802.02611).

Differences from the paper: the backbones are ResNet and MobileNetV2; the low-level features are the last ones of stride
4 (`low_level` chooses other taps of the backbone). Convolutions are plain by default, as in the paper's ResNet-101
ablations; `separable=True` gives the separable ones of its Xception results.
Variant: segmentation_models_pytorch has a separable convolution on ASPP's output and one in the decoder, without batch
norm between depthwise and pointwise: `separable=True, depthwise_norm=False, encoder_convolutions=1,
decoder_convolutions=1`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.errors import JaxsegError
from jaxseg.core.types import Outputs
from jaxseg.layers.aspp import ASPP
from jaxseg.layers.conv_norm import Conv, ConvNorm, classifier_normal, separable_or_plain
from jaxseg.layers.heads import AuxiliaryHead, check_tap, enlarged, rates_at
from jaxseg.layers.image import check_image, check_output_stride
from jaxseg.layers.norm import NormOptions
from jaxseg.layers.trunk import make_trunk, taps_of
from jaxseg.ops.resize import resize

OUTPUT_STRIDES = (8, 16, 32)


class Decoder(nn.Module):
    """Low-level features by 1x1 to few channels, concatenated with the resized encoder output, two 3x3 convolutions.

    `before` counts 3x3 convolutions on the encoder's output, `after` those on the concatenation.
    """

    features: int = 256
    low_level_features: int = 48
    separable: bool = False
    alignment: str = "align_corners"
    depthwise_norm: bool = True
    before: int = 0
    after: int = 2
    norm: NormOptions = NormOptions()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, low_level: jax.Array, train: bool) -> jax.Array:
        """`[*b, h, w, c]`, `[*b, H, W, l] -> [*b, H, W, features]`."""
        shared: dict[str, Any] = {"norm": self.norm, "dtype": self.dtype}
        conv = separable_or_plain(self.separable, self.depthwise_norm, **shared)
        for i in range(self.before):
            x = conv(self.features, kernel_size=3, name=f"encoder_conv{i + 1}")(x, train)
        low = ConvNorm(self.low_level_features, name="low_level", **shared)(low_level, train)
        x = resize(x, low.shape[-3:-1], alignment=self.alignment)
        x = jnp.concatenate([x, low], axis=-1)
        for i in range(self.after):
            x = conv(self.features, kernel_size=3, name=f"conv{i + 1}")(x, train)
        return x


class DeepLabV3Plus(nn.Module):
    """See `build`."""

    backbone: nn.Module
    aspp: nn.Module
    decoder: Decoder
    num_classes: int
    low_level: str
    deepest: str
    aux: AuxiliaryHead | None = None
    alignment: str = "align_corners"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """`[*b, h, w, 3]` -> `logits` `[*b, h, w, classes]` float32, taps `backbone/<name>`, `aspp`, `decoder`."""
        check_image(image, model="deeplab_v3plus")
        size = image.shape[-3:-1]
        features = self.backbone(image.astype(self.dtype), train)
        check_tap(features, self.low_level, option="low_level")
        encoded = self.aspp(features[self.deepest], train)
        decoded = self.decoder(encoded, features[self.low_level], train)
        classifier = Conv(self.num_classes, use_bias=True, kernel_init=classifier_normal(), name="classifier")
        outputs = taps_of(features) | {"aspp": encoded, "decoder": decoded}
        outputs |= enlarged("logits", classifier(decoded), size, alignment=self.alignment)
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
    decoder_channels: int = 256,
    low_level: str = "s4",
    low_level_channels: int = 48,
    separable: bool = False,
    depthwise_norm: bool = True,
    encoder_convolutions: int = 0,
    decoder_convolutions: int = 2,
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
    """DeepLab v3+.

    Args:
      num_classes: classes, void not counted.
      backbone: name of a module of jaxseg.backbones.
      backbone_options: further options of its build(), for example {"multi_grid": (1, 2, 4)} or {"width": 0.5}.
      output_stride: 8, 16 or 32.
      aspp_rates: atrous rates at output stride 16; doubled at 8, halved at 32. () leaves the 3x3 branches out.
      aspp_channels: channels of each branch and of the encoder's output.
      image_pooling: the branch of the global mean.
      decoder_channels: channels of the decoder's 3x3 convolutions.
      low_level: the backbone's tap that the decoder refines with.
      low_level_channels: channels it is reduced to.
      separable: depthwise separable 3x3 convolutions in ASPP and decoder.
      depthwise_norm: batch norm and ReLU between the depthwise and the pointwise convolution.
      encoder_convolutions: 3x3 convolutions on ASPP's output before it is resized.
      decoder_convolutions: 3x3 convolutions on the concatenation with the low-level features.
      dropout_rate: after ASPP.
      alignment: of all resizing, "align_corners" (TensorFlow's release) or "half_pixel".
      aux_tap: the backbone's tap of an auxiliary head with logits `aux/backbone`; "" for none.
      aux_channels: its hidden channels.
      norm_momentum: of every batch norm.
      norm_epsilon: of the batch norms of ASPP, decoder and auxiliary head; the backbone has its own.
      freeze_norm: running statistics everywhere, in training too.
      freeze_backbone_norm: the same for the backbone alone.
      remat: recompute the backbone's blocks in the backward pass.
      dtype: of the computation; parameters and logits are float32.

    Returns:
      A module, `module.apply(variables, image, train)`.

    Raises:
      JaxsegError: unknown backbone or option, impossible output stride, negative numbers of convolutions.
    """
    if min(encoder_convolutions, decoder_convolutions) < 0:
        raise JaxsegError("deeplab_v3plus: encoder_convolutions and decoder_convolutions must not be negative.")
    check_output_stride(output_stride, allowed=OUTPUT_STRIDES, model="deeplab_v3plus")
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
    rates = rates_at(aspp_rates, output_stride, model="deeplab_v3plus")
    aux = AuxiliaryHead(num_classes, aux_tap, aux_channels, dropout_rate, alignment, **shared) if aux_tap else None
    return DeepLabV3Plus(
        backbone=trunk,
        aspp=ASPP(aspp_channels, rates, separable, image_pooling, dropout_rate, depthwise_norm, **shared),
        decoder=Decoder(
            *(decoder_channels, low_level_channels, separable, alignment, depthwise_norm),
            *(encoder_convolutions, decoder_convolutions),
            **shared,
        ),
        num_classes=num_classes,
        low_level=low_level,
        deepest=f"s{output_stride}",
        aux=aux,
        alignment=alignment,
        dtype=dtype,
    )
