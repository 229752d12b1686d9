"""U-Net's decoder (Ronneberger et al. 2015, arXiv 1505.04597) over any backbone, as segmentation_models_pytorch's Unet.

From the deepest map, five times: nearest up-sampling to the next shallower map's size, that map beside it, two 3x3
convolutions with batch norm and ReLU (256, 128, 64, 32, 16 channels). The last step goes to the image's size and has no
map beside it. A 3x3 convolution gives the logits.

Differences from the paper: the encoder is a classification backbone, zeros pad all convolutions, up-sampling has no
weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.errors import JaxsegError
from jaxseg.core.names import call_with_options, resolve
from jaxseg.core.types import Outputs
from jaxseg.layers.conv_norm import Conv, ConvNorm
from jaxseg.layers.image import check_image
from jaxseg.layers.norm import NormOptions
from jaxseg.ops.resize import resize
from jaxseg.ops.twice import twice

STRIDES = (32, 16, 8, 4, 2)


def repeated(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """Each pixel twice along h and w, cut to `size`; where twice is too small, the nearest pixel.

    PyTorch's nearest takes pixel `floor(i n / size)`: of n = ceil(size / 2) pixels that is `i // 2`.
    """
    h, w = x.shape[-3:-1]
    if 2 * h < size[0] or 2 * w < size[1]:
        return resize(x, size, alignment="half_pixel", method="nearest")
    return twice(x)[..., : size[0], : size[1], :]


class UNetEncoder(nn.Module):
    """See `build`."""

    backbone: nn.Module
    num_classes: int
    decoder_channels: tuple[int, ...]
    norm: NormOptions = NormOptions()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """`[*b, h, w, 3]` -> `logits` `[*b, h, w, classes]` float32, taps `backbone/<name>`, `decoder1` .."""
        check_image(image, model="unet_encoder")
        features = self.backbone(image.astype(self.dtype), train)
        outputs = {f"backbone/{name}": value for name, value in features.items()}
        x = features["s32"]
        skips = (*(features[f"s{stride}"] for stride in STRIDES[1:]), None)
        for i, (channels, skip) in enumerate(zip(self.decoder_channels, skips, strict=True), start=1):
            size = (image if skip is None else skip).shape[-3:-1]
            exact = (2 * x.shape[-3], 2 * x.shape[-2]) == size
            if not exact:
                pieces = [repeated(x, size)] + ([] if skip is None else [skip])
                x, skip = jnp.concatenate(pieces, axis=-1), None
            shared: dict[str, Any] = {"norm": self.norm, "dtype": self.dtype}
            x = ConvNorm(channels, 3, twice=exact, name=f"decoder{i}_conv1", **shared)(x, train, skip)
            x = ConvNorm(channels, 3, name=f"decoder{i}_conv2", **shared)(x, train)
            outputs[f"decoder{i}"] = x
        classifier = Conv(self.num_classes, 3, use_bias=True, name="classifier")
        outputs["logits"] = classifier(x)
        return outputs


def build(
    *,
    num_classes: int,
    backbone: str = "resnet34",
    backbone_options: Mapping[str, Any] | None = None,
    decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    freeze_norm: bool = False,
    freeze_backbone_norm: bool = False,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """U-Net's decoder over a backbone.

    Args:
      num_classes: classes, void not counted.
      backbone: name of a module of jaxseg.backbones.
      backbone_options: further options of its build(); segmentation_models_pytorch's MobileNetV2 is
        {"padding": "torch", "norm_epsilon": 1e-5, "last_convolution": True}.
      decoder_channels: five numbers, the deepest first.
      norm_momentum: of every batch norm.
      norm_epsilon: of the decoder's batch norms; the backbone has its own.
      freeze_norm: running statistics everywhere, in training too.
      freeze_backbone_norm: the same for the backbone alone.
      remat: recompute the backbone's blocks in the backward pass.
      dtype: of the computation; parameters and logits are float32.

    Returns:
      A module, `module.apply(variables, image, train)`.

    Raises:
      JaxsegError: unknown backbone or option, or a number of decoder channels that is not five.
    """
    channels = tuple(decoder_channels)
    if len(channels) != len(STRIDES) or min(channels) < 1:
        raise JaxsegError(f"unet_encoder: decoder_channels = {channels} must be {len(STRIDES)} positive numbers.")
    extractor = call_with_options(
        resolve("backbones", backbone),
        dict(backbone_options or {}),
        where="config.model.backbone_options",
        output_stride=32,
        norm_momentum=norm_momentum,
        freeze_norm=freeze_norm or freeze_backbone_norm,
        remat=remat,
        dtype=dtype,
    )
    norm = NormOptions(norm_momentum, norm_epsilon, freeze_norm)
    return UNetEncoder(extractor, num_classes, channels, norm, dtype)
