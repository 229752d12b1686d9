"""KSAC: kernel-sharing atrous convolution (Huang et al. 2019, arXiv 1908.09443), in DeepLab v3+ in place of ASPP.

One 3x3 kernel serves all atrous branches, each with its own batch norm; a 1x1 branch and image pooling stand beside
them. For 2048 -> 256 channels and three rates the branches have 5,769,728 parameters, ASPP's 15,206,912.

Differences from the paper: how the branches are fused is not known for certain, there is no code. `fuse="concat"`
(default) concatenates and projects by 1x1 as ASPP does; `fuse="sum"` adds them up, without a projection. No accuracy is
claimed for either.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.errors import JaxsegError
from jaxseg.layers.conv_norm import ConvNorm, he_normal
from jaxseg.layers.dropout import Dropout
from jaxseg.layers.heads import rates_at
from jaxseg.layers.image import check_output_stride
from jaxseg.layers.norm import BatchNorm, NormOptions
from jaxseg.layers.trunk import make_trunk
from jaxseg.models.deeplab_v3plus import OUTPUT_STRIDES, Decoder, DeepLabV3Plus
from jaxseg.ops.conv import conv

FUSIONS = ("concat", "sum")


class KSAC(nn.Module):
    """Atrous branches of one kernel, a 1x1 convolution and image pooling, fused.

    Attributes:
      features: channels of each branch and of the result.
      rates: atrous rates in pixels of this feature map.
      fuse: "concat" (and a 1x1 projection) or "sum".
      dropout_rate: after the fusion, in training only.
    """

    features: int = 256
    rates: tuple[int, ...] = (6, 12, 18)
    fuse: str = "concat"
    dropout_rate: float = 0.1
    norm: NormOptions = NormOptions()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[*b, h, w, c] -> [*b, h, w, features]`."""
        shared: dict[str, Any] = {"norm": self.norm, "dtype": self.dtype}
        mean = jnp.mean(x, axis=(-3, -2), keepdims=True, dtype=jnp.float32).astype(self.dtype)
        pooled = ConvNorm(self.features, name="image_pooling", **shared)(mean, train)
        branches = [jnp.broadcast_to(pooled, (*x.shape[:-1], self.features))]
        branches.append(ConvNorm(self.features, name="conv1x1", **shared)(x, train))
        kernel = self.param("kernel", he_normal(), (3, 3, x.shape[-1], self.features), jnp.float32)
        for i, rate in enumerate(self.rates):
            y = conv(x.astype(self.dtype), kernel.astype(self.dtype), dilation=rate)
            branches.append(nn.relu(BatchNorm(self.norm, self.dtype, name=f"atrous{i + 1}_norm")(y, train)))
        if self.fuse == "concat":
            y = ConvNorm(self.features, name="project", **shared)(jnp.concatenate(branches, axis=-1), train)
        else:
            y = jnp.sum(jnp.stack(branches), axis=0)
        return Dropout(self.dropout_rate, deterministic=not train, name="dropout")(y)


def build(
    *,
    num_classes: int,
    backbone: str = "xception65",
    backbone_options: Mapping[str, Any] | None = None,
    output_stride: int = 16,
    rates: Sequence[int] = (6, 12, 18),
    channels: int = 256,
    fuse: str = "concat",
    decoder_channels: int = 256,
    low_level: str = "s4",
    low_level_channels: int = 48,
    separable: bool = True,
    dropout_rate: float = 0.1,
    alignment: str = "align_corners",
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    freeze_norm: bool = False,
    freeze_backbone_norm: bool = False,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """DeepLab v3+ with KSAC.

    Args:
      num_classes: classes, void not counted.
      backbone: name of a module of jaxseg.backbones.
      backbone_options: further options of its build().
      output_stride: 8, 16 or 32.
      rates: atrous rates at output stride 16; doubled at 8, halved at 32.
      channels: of each branch and of the encoder's output.
      fuse: "concat" or "sum", see above.
      decoder_channels: channels of the decoder's 3x3 convolutions.
      low_level: the backbone's tap that the decoder refines with.
      low_level_channels: channels it is reduced to.
      separable: depthwise separable convolutions in the decoder.
      dropout_rate: after the fusion.
      alignment: of all resizing, "align_corners" or "half_pixel".
      norm_momentum: of every batch norm.
      norm_epsilon: of the batch norms of KSAC and decoder; the backbone has its own.
      freeze_norm: running statistics everywhere, in training too.
      freeze_backbone_norm: the same for the backbone alone.
      remat: recompute the backbone's blocks in the backward pass.
      dtype: of the computation; parameters and logits are float32.

    Returns:
      A module, `module.apply(variables, image, train)`.

    Raises:
      JaxsegError: unknown backbone, option or fusion, impossible output stride or rates.
    """
    check_output_stride(output_stride, allowed=OUTPUT_STRIDES, model="ksac")
    if fuse not in FUSIONS or not rates:
        raise JaxsegError(f"ksac: fuse = {fuse!r} is one of {', '.join(FUSIONS)}; rates = {tuple(rates)} at least one.")
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
    scaled = rates_at(rates, output_stride, model="ksac")
    return DeepLabV3Plus(
        backbone=trunk,
        aspp=KSAC(channels, scaled, fuse, dropout_rate, **shared),
        decoder=Decoder(decoder_channels, low_level_channels, separable, alignment=alignment, **shared),
        num_classes=num_classes,
        low_level=low_level,
        deepest=f"s{output_stride}",
        alignment=alignment,
        dtype=dtype,
    )
