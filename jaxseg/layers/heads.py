"""What the heads of several networks share: auxiliary logits, atrous rates by output stride, taps by name."""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.coarse import CoarseLogits
from jaxseg.core.errors import JaxsegError, UnknownNameError
from jaxseg.core.names import close_matches
from jaxseg.core.types import Outputs
from jaxseg.layers.conv_norm import Conv, ConvNorm, classifier_normal
from jaxseg.layers.dropout import Dropout
from jaxseg.layers.norm import NormOptions
from jaxseg.ops.resize import resize
from jaxseg.ops.zoom import zoom


def check_tap(features: Mapping[str, jax.Array], tap: str, *, option: str) -> None:
    """Raises UnknownNameError unless the backbone gives the tap; `option` is the option that named it."""
    if tap not in features:
        raise UnknownNameError(f"config.model.{option} = {tap!r}: no such tap. {close_matches(tap, features)}")


def rates_at(rates: Sequence[int], output_stride: int, *, model: str, stated_at: int = 16) -> tuple[int, ...]:
    """Atrous rates that a paper states at one output stride, for another: `rate * stated_at / output_stride`.

    Example: (6, 12, 18) stated at 16 is (12, 24, 36) at 8 and (3, 6, 9) at 32.

    Raises:
      JaxsegError: a rate is not positive or does not divide.
    """
    if any(r < 1 or r * stated_at % output_stride for r in rates):
        raise JaxsegError(
            f"{model}: rates {tuple(rates)}, stated at output stride {stated_at}, do not give positive whole rates at "
            f"output stride {output_stride}."
        )
    return tuple(r * stated_at // output_stride for r in rates)


def enlarged(name: str, coarse: jax.Array, size: Sequence[int], *, alignment: str) -> Outputs:
    """`name`: the logits at `size`; `coarse/<name>`: what they come from, for a loss that works through blocks of rows.

    Under jit, what of the two is not used is not computed.
    """
    return {name: resize(coarse, size, alignment=alignment), f"coarse/{name}": CoarseLogits(coarse, alignment)}


def zoomed(name: str, coarse: jax.Array, factor: int, size: Sequence[int]) -> Outputs:
    """As `enlarged`, from the origin: `ops.zoom`."""
    h, w = coarse.shape[-3:-1]
    grid = factor * (h - 1) + 1, factor * (w - 1) + 1
    return {name: zoom(coarse, factor, size), f"coarse/{name}": CoarseLogits(coarse, "align_corners", grid)}


class AuxiliaryHead(nn.Module):
    """3x3 convolution, batch norm, ReLU, dropout, 1x1 classifier on one of the backbone's taps (PSPNet, torchvision).

    Attributes:
      num_classes: channels of the logits.
      tap: which of the backbone's features.
      output: name of its logits.
      features: hidden channels; 0 takes a quarter of the tap's.
      dropout_rate: before the classifier.
      alignment: of the resize to the image's size.
    """

    num_classes: int
    tap: str
    features: int = 256
    dropout_rate: float = 0.1
    alignment: str = "align_corners"
    norm: NormOptions = NormOptions()
    dtype: jnp.dtype = jnp.float32
    output: str = "aux/backbone"

    @nn.compact
    def __call__(self, features: Mapping[str, jax.Array], size: Sequence[int], train: bool) -> Outputs:
        """Logits `[*b, *size, classes]`, float32, under `output`, and before their enlargement under `coarse/..`."""
        check_tap(features, self.tap, option="aux_tap")
        x = features[self.tap]
        x = ConvNorm(self.features or x.shape[-1] // 4, 3, norm=self.norm, dtype=self.dtype, name="conv")(x, train)
        x = Dropout(self.dropout_rate, deterministic=not train, name="dropout")(x)
        x = Conv(self.num_classes, use_bias=True, kernel_init=classifier_normal(), name="classifier")(x)
        return enlarged(self.output, x, size, alignment=self.alignment)
