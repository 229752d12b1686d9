"""SegNet: a deep convolutional encoder-decoder (Badrinarayanan et al. 2015, arXiv 1511.00561; Basic: 1505.07293).

| stage | encoder | decoder |
|---|---|---|
| 1 | 64, 64 | 64, classifier |
| 2 | 128, 128 | 128, 64 |
| 3 | 256 x 3 | 256, 256, 128 |
| 4 | 512 x 3 | 512, 512, 256 |
| 5 | 512 x 3 | 512 x 3 |

3x3 convolutions with bias, batch norm and ReLU. Each encoder stage ends in 2x2 max-pooling that rounds up and keeps the
places of the maxima; a decoder stage begins by putting the values back there, with zeros elsewhere. SegNet-Basic
(`segnet_basic`): local response normalisation of the input, four stages of one 7x7 convolution to 64 channels, no ReLU
in the decoder, a 1x1 classifier.

Differences from the paper: the batch norms' shift starts at 0 (Caffe's prototxt: 0.001). At test, the paper's
statistics of batch norm are recomputed over the training set: `config.evaluate.batch_statistics = "recomputed"`.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.errors import JaxsegError
from jaxseg.core.types import Outputs
from jaxseg.layers.conv_norm import Conv, conv_then_norm
from jaxseg.layers.dropout import Dropout
from jaxseg.layers.image import check_image
from jaxseg.layers.norm import BatchNorm, NormOptions
from jaxseg.ops.local_response_norm import local_response_norm
from jaxseg.ops.pooling import max_pool_with_indices, unpool
from jaxseg.ops.resize import resize

Stages = tuple[tuple[int, ...], ...]
ENCODER: Stages = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# The deepest first; the classifier follows the last.
DECODER: Stages = ((512, 512, 512), (512, 512, 256), (256, 256, 128), (128, 64), (64,))
UNPOOLINGS = ("indices", "bed_of_nails", "nearest", "bilinear")

msra = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Layer(nn.Module):
    """Convolution with bias, batch norm, and ReLU where asked for."""

    features: int
    kernel_size: int = 3
    relu: bool = True
    norm: NormOptions = NormOptions()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[*b, h, w, c] -> [*b, h, w, features]`."""
        conv = Conv(
            self.features,
            self.kernel_size,
            padding="torch",
            use_bias=True,
            kernel_init=msra,
            dtype=self.dtype,
            name="conv",
        )
        x = conv_then_norm(conv, BatchNorm(self.norm, self.dtype, name="norm"), x, train)
        return nn.relu(x) if self.relu else x


class SegNet(nn.Module):
    """An encoder that keeps the places of its maxima and a decoder that uses them.

    Attributes:
      num_classes: channels of the logits.
      encoder, decoder: channels of each stage's convolutions; the decoder's deepest first.
      kernel_size: of all convolutions.
      classifier_size: kernel of the last convolution.
      decoder_relu: ReLU in the decoder.
      normalize_input: local response normalisation of the image.
      unpooling: what the decoder begins with, see `build`.
      dropout_rate: after the pooling of the encoder's stages from `dropout_from` on, in training only.
      dropout_from: number of the first such stage.
    """

    num_classes: int
    encoder: Stages = ENCODER
    decoder: Stages = DECODER
    kernel_size: int = 3
    classifier_size: int = 3
    decoder_relu: bool = True
    normalize_input: bool = False
    unpooling: str = "indices"
    dropout_rate: float = 0.0
    dropout_from: int = 3
    norm: NormOptions = NormOptions()
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """`[*b, h, w, 3]` -> `logits` `[*b, h, w, classes]` float32, taps `encoder1` .., `decoder1` .."""
        check_image(image, model="segnet")
        x = image.astype(self.dtype)
        if self.normalize_input:
            x = local_response_norm(x, 5, alpha=1e-4, beta=0.75)
        layer = nn.remat(Layer, static_argnums=(2,)) if self.remat else Layer
        shared: dict[str, Any] = {"kernel_size": self.kernel_size, "norm": self.norm, "dtype": self.dtype}
        outputs, places = {}, []
        for stage, channels in enumerate(self.encoder, start=1):
            for i, features in enumerate(channels, start=1):
                x = layer(features, name=f"encoder{stage}_layer{i}", **shared)(x, train)
            size = x.shape[-3:-1]
            x, indices = max_pool_with_indices(x, 2, ceil=True)
            places.append((indices, size))
            if self.dropout_rate and stage >= self.dropout_from:
                x = Dropout(self.dropout_rate, deterministic=not train)(x)
            outputs[f"encoder{stage}"] = x
        for depth, channels in enumerate(self.decoder):
            stage = len(self.decoder) - depth
            x = self._unpooled(x, *places.pop())
            for i, features in enumerate(channels, start=1):
                x = layer(features, relu=self.decoder_relu, name=f"decoder{stage}_layer{i}", **shared)(x, train)
            outputs[f"decoder{stage}"] = x
        classifier = Conv(
            self.num_classes,
            self.classifier_size,
            padding="torch",
            use_bias=True,
            kernel_init=msra,
            name="classifier",
        )
        outputs["logits"] = classifier(x)
        return outputs

    def _unpooled(self, x: jax.Array, indices: jax.Array, size: Sequence[int]) -> jax.Array:
        if self.unpooling in ("nearest", "bilinear"):
            return resize(x, size, alignment="half_pixel", method=self.unpooling)
        return unpool(x, indices if self.unpooling == "indices" else jnp.zeros_like(indices), size)


def build(
    *,
    num_classes: int,
    encoder: Sequence[Sequence[int]] = ENCODER,
    decoder: Sequence[Sequence[int]] = DECODER,
    unpooling: str = "indices",
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    freeze_norm: bool = False,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """SegNet.

    Args:
      num_classes: classes, void not counted.
      encoder: channels of each stage's convolutions; the default is VGG-16's.
      decoder: the same, the deepest first; stage by stage its first convolutions see the channels that it is given:
        with unpooling by indices a stage's input has the channels of the encoder's stage.
      unpooling: "indices" as published; "bed_of_nails" (upper left corner), "nearest" or "bilinear" (half-pixel).
      norm_momentum, norm_epsilon, freeze_norm: batch norm.
      remat: recompute each layer in the backward pass.
      dtype: of the computation; parameters and logits are float32.

    Returns:
      A module, `module.apply(variables, image, train)`.

    Raises:
      JaxsegError: an unknown unpooling, or stages that do not fit each other.
    """
    encoder_stages: Stages = tuple(map(tuple, encoder))
    decoder_stages: Stages = tuple(map(tuple, decoder))
    check_stages(encoder_stages, decoder_stages, unpooling, model="segnet")
    return SegNet(
        num_classes=num_classes,
        encoder=encoder_stages,
        decoder=decoder_stages,
        unpooling=unpooling,
        norm=NormOptions(norm_momentum, norm_epsilon, freeze_norm),
        remat=remat,
        dtype=dtype,
    )


def check_stages(encoder: Stages, decoder: Stages, unpooling: str, *, model: str) -> None:
    """Raises JaxsegError unless each decoder stage gets as many channels as its indices have."""
    if unpooling not in UNPOOLINGS:
        raise JaxsegError(f"{model}: unpooling = {unpooling!r} is one of {', '.join(UNPOOLINGS)}.")
    if len(encoder) != len(decoder) or not all(encoder) or not all(decoder):
        raise JaxsegError(f"{model}: encoder {encoder} and decoder {decoder} need as many stages, none of them empty.")
    for stage, (left, right) in enumerate(zip(encoder[:-1], decoder[-2::-1], strict=True), start=1):
        if left[-1] != right[-1]:
            raise JaxsegError(
                f"{model}: encoder stage {stage} has {left[-1]} channels, what decoder stage {stage + 1} hands to it "
                f"{right[-1]}: unpooling by indices needs as many."
            )
