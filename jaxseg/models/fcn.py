"""FCN: fully convolutional networks for semantic segmentation (Long, Shelhamer, Darrell 2015, arXiv 1411.4038).

| variant    | scores from         | enlarged by, first row and column kept                                        |
|------------|---------------------|-------------------------------------------------------------------------------|
| 32s        | fc7                 | 32 (kernel 64), 19; AlexNet: 32 (kernel 63), 18                               |
| 16s        | fc7, pool4          | 2 (kernel 4), + pool4 from 5; 16 (kernel 32), 27                              |
| 8s         | fc7, pool4, pool3   | 2, + pool4 from 5; 2 (kernel 4), + pool3 from 9; 8 (kernel 16), 31            |
| 8s_at_once | fc7, pool4, pool3   | as 8s, with pool4 times 0.01 and pool3 times 0.0001 before their scores       |

The first convolution sees the image with 100 zeros on every side, pooling counts its windows up, fc6 pads nothing.

Differences from the paper: the up-sampling is the fixed bilinear one, as in the authors' release; the paper learns the
inner ones (`deconvolution="dense"` or "depthwise", `frozen=False`). The journal version (arXiv 1605.06211) has the
variant 8s_at_once. Images are RGB where the release has BGR. For the ResNet FCN of torchvision see
`jaxseg.models.fcn_resnet`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.errors import JaxsegError
from jaxseg.core.names import call_with_options, resolve
from jaxseg.core.types import Outputs
from jaxseg.layers.conv_norm import Conv
from jaxseg.layers.fully_connected import FullyConnectedConvs
from jaxseg.layers.image import check_image
from jaxseg.layers.upsample import Upsample

VARIANTS = ("32s", "16s", "8s", "8s_at_once")
BACKBONES = ("vgg16", "alexnet")
DECONVOLUTIONS = ("fixed", "depthwise", "dense")
PADDING = 100
# Factor and crop offset of the last up-sampling.
LAST = {"32s": (32, 19), "16s": (16, 27), "8s": (8, 31), "8s_at_once": (8, 31)}
# What is added before it: tap, crop offset of its scores, factor of the tap at once.
SKIPS = {"pool4": (5, 0.01), "pool3": (9, 0.0001)}
USED = {"32s": (), "16s": ("pool4",), "8s": ("pool4", "pool3"), "8s_at_once": ("pool4", "pool3")}


class FCN(nn.Module):
    """See `build`."""

    backbone: nn.Module
    head: FullyConnectedConvs
    num_classes: int
    variant: str = "8s"
    deconvolution: str = "fixed"
    frozen: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """`[*b, h, w, 3]` -> `logits` float32 at the input's size, taps `fc7`, `score_fr`, `upscore2`, ..."""
        check_image(image, model="fcn")
        features = self.backbone(image.astype(self.dtype), train)
        outputs: Outputs = {f"backbone/{name}": value for name, value in features.items()}
        outputs["fc7"] = x = self.head(features["pool5"], train)
        outputs["score_fr"] = x = self._score("score_fr", x)
        for tap, name in zip(USED[self.variant], ("upscore2", "upscore_pool4"), strict=False):
            h, w = ((n - 1) * 2 + 4 for n in x.shape[-3:-1])
            outputs[name] = x = self._upsample(name, 2, 4, 0)(x, (h, w))
            offset, factor = SKIPS[tap]
            skip = features[tap][..., offset : offset + h, offset : offset + w, :]
            if self.variant == "8s_at_once":
                skip = skip * jnp.asarray(factor, skip.dtype)
            outputs[f"score_{tap}"] = score = self._score(f"score_{tap}", skip)
            x = x + score
        factor, offset = LAST[self.variant]
        # CaffeNet's sizes lead to a kernel of one less than twice the stride, and a row less in front.
        odd = "conv5" in features
        last = self._upsample(f"upscore{factor}", factor, 2 * factor - odd, offset - odd)
        outputs["logits"] = last(x, image.shape[-3:-1])
        return outputs

    def _score(self, name: str, x: jax.Array) -> jax.Array:
        return Conv(self.num_classes, use_bias=True, kernel_init=nn.initializers.zeros, name=name)(x)

    def _upsample(self, name: str, factor: int, kernel_size: int, offset: int) -> Upsample:
        fixed = self.deconvolution == "fixed"
        return Upsample(
            "fixed_transposed" if fixed else "transposed",
            factor,
            kernel_size=kernel_size,
            offset=offset,
            depthwise=self.deconvolution == "depthwise",
            frozen=self.frozen,
            name=name,
        )


def build(
    *,
    num_classes: int,
    variant: str = "8s",
    backbone: str = "vgg16",
    backbone_options: Mapping[str, Any] | None = None,
    fc_channels: int = 4096,
    dropout_rate: float = 0.5,
    deconvolution: str = "fixed",
    frozen: bool = False,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """FCN over VGG-16 or AlexNet.

    Args:
      num_classes: classes, void not counted.
      variant: "32s", "16s", "8s" or "8s_at_once".
      backbone: "vgg16", or "alexnet" (variant "32s" alone).
      backbone_options: further options of its build(), for example {"width": 8}.
      fc_channels: channels of fc6 and fc7.
      dropout_rate: after fc6 and fc7.
      deconvolution: "fixed": constant bilinear, no parameters; "depthwise": a kernel a class; "dense": a kernel for
        each pair of classes, the layout of the released Caffe files. Both begin bilinear.
      frozen: parameters of the up-sampling get no gradient. Give the optimiser a rule with `freeze` for `^upscore`,
        or weight decay shrinks them.
      remat: recompute the backbone's stages in the backward pass.
      dtype: of the computation; parameters, scores and logits are float32.

    Returns:
      A module, `module.apply(variables, image, train)`.

    Raises:
      JaxsegError: an unknown variant, backbone, deconvolution or option; AlexNet with skips.
    """
    choices = (("variant", variant, VARIANTS), ("backbone", backbone, BACKBONES))
    for option, value, known in (*choices, ("deconvolution", deconvolution, DECONVOLUTIONS)):
        if value not in known:
            raise JaxsegError(f"fcn: {option} = {value!r} is not one of {', '.join(known)}.")
    if backbone == "alexnet" and variant != "32s":
        raise JaxsegError(f"fcn: backbone 'alexnet' has no variant {variant!r}; the authors published '32s' alone.")
    fixed: dict[str, Any] = {"first_padding": PADDING, "remat": remat, "dtype": dtype}
    fixed |= {"ceil": True} if backbone == "vgg16" else {}
    extractor = call_with_options(
        resolve("backbones", backbone), dict(backbone_options or {}), where="config.model.backbone_options", **fixed
    )
    return FCN(
        backbone=extractor,
        head=FullyConnectedConvs(fc_channels, 7 if backbone == "vgg16" else 6, dropout_rate=dropout_rate, dtype=dtype),
        num_classes=num_classes,
        variant=variant,
        deconvolution=deconvolution,
        frozen=frozen,
        dtype=dtype,
    )
