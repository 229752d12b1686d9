"""Multi-scale context aggregation by dilated convolutions (Yu, Koltun 2015, arXiv 1511.07122).

Front end: VGG-16 without any padding, without pool4 and pool5. A tile of 900 pixels:

| layer              | rate | side                 |
|--------------------|------|----------------------|
| stage 1, pooling   | 1    | 896, 448             |
| stage 2, pooling   | 1    | 444, 222             |
| stage 3, pooling   | 1    | 216, 108             |
| stage 4            | 1    | 102                  |
| stage 5            | 2    | 90                   |
| fc6 7x7, fc7, classifier | 4 | 66                 |

A side of 372 + 8 k gives k, so the image is mirrored 186 pixels beyond its borders, as published, and behind it as far
as whole samples need. The logits have the image's own size, whatever it is.

Context module on the front end's scores: 3x3 convolutions with ReLU, then 1x1 without.

| layers            | rates                                |
|-------------------|--------------------------------------|
| 7 (KITTI)         | 1, 1, 2, 4, 8, 1, then 1x1           |
| 8 (VOC, CamVid)   | 1, 1, 2, 4, 8, 16, 1, then 1x1       |
| 10 (Cityscapes)   | 1, 1, 2, 4, 8, 16, 32, 64, 1, then 1x1 |

"basic" has as many channels as classes (C) everywhere, "large" (8 layers) 2, 2, 4, 8, 16, 32, 32 and 1 times C.

Variants: convolutions pad by their rate, or the first pads 33 for all of them (`context_padding="first"`, the released
VOC network), which differs at the border, where the others see what the biases made of zeros. The released VOC, CamVid
and KITTI networks enlarge probabilities from the origin, half a stride beside the samples' centres;
`upsampling="deconvolution"` is Cityscapes' fixed bilinear one, which is centred.
Differences from the paper: training sees logits at full size; the authors' stage-wise training has labels of an eighth.
A crop is mirrored at its border where the authors' crops have 186 pixels more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.errors import JaxsegError
from jaxseg.core.types import Outputs
from jaxseg.layers.conv_norm import Conv, Initializer
from jaxseg.layers.fully_connected import FullyConnectedConvs
from jaxseg.layers.image import check_image
from jaxseg.layers.trunk import make_trunk, taps_of
from jaxseg.ops.mirror import mirror_pad
from jaxseg.ops.transposed import bilinear_conv_transpose

STRIDE = 8
MARGIN = 186
RATES = {7: (1, 1, 2, 4, 8, 1), 8: (1, 1, 2, 4, 8, 16, 1), 10: (1, 1, 2, 4, 8, 16, 32, 64, 1)}
LARGE = (2, 2, 4, 8, 16, 32, 32)
CONTEXTS = ("none", "basic", "large")
CONTEXT_PADDINGS = ("per_layer", "first")
UPSAMPLINGS = ("probabilities", "deconvolution")


def identity_kernel(classes: int, noise: float) -> Initializer:
    """Initial values that hand each class on: `C / n` at the centre between channels of one class, else N(0, s).

    A layer from m to n channels, both multiples of C, has channels `a` and `b` of one class where
    `floor(a C / m) = floor(b C / n)`; `s = noise C / n`. Without noise and on scores that are not negative, a chain of
    layers from C to C channels is the identity.

    Reference: arXiv 1511.07122, section 3, equations 4 and 5.
    """

    def initializer(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        rows, columns, m, n = shape
        kernel = noise * classes / n * jax.random.normal(key, (rows, columns, m, n), jnp.float32)
        same_class = (jnp.arange(m) * classes // m)[:, None] == jnp.arange(n) * classes // n
        centre = jnp.where(same_class, classes / n, kernel[rows // 2, columns // 2])
        return kernel.at[rows // 2, columns // 2].set(centre).astype(dtype)

    return initializer


def samples(length: int, upsampling: str) -> int:
    """How many scores a side the front end must give: `ceil(n / 8)`, or one behind the last pixel to mix with."""
    return -(-length // STRIDE) if upsampling == "deconvolution" else (length - 1) // STRIDE + 2


def enlarged_probabilities(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """Logarithms of probabilities, enlarged 8 times: bilinear between the probabilities, sample i at pixel 8 i.

    It stays with logarithms, so that what underflows as a probability still has its value and its gradient.

    Args:
      x: `[*b, h, w, c]`, at least two samples a side.
      size: (height, width), at most 8 (n - 1).

    Returns:
      `[*b, height, width, c]`.
    """
    part = jnp.arange(STRIDE, dtype=x.dtype) / STRIDE
    *batch, h, w, c = x.shape
    t = part[:, None, None]
    low, high = x[..., :-1, None, :, :], x[..., 1:, None, :, :]
    rows = jnp.logaddexp(low + jnp.log1p(-t), high + jnp.log(t)).reshape(*batch, (h - 1) * STRIDE, w, c)
    rows, t = rows[..., : size[0], :, :], part[:, None]
    low, high = rows[..., :-1, None, :], rows[..., 1:, None, :]
    both = jnp.logaddexp(low + jnp.log1p(-t), high + jnp.log(t)).reshape(*batch, size[0], (w - 1) * STRIDE, c)
    return both[..., : size[1], :]


class Context(nn.Module):
    """The context module.

    Attributes:
      num_classes: C, channels of input and result.
      rates: of the 3x3 convolutions.
      multiples: their channels in units of C.
      pad_first: the first one pads the sum of all rates, the others nothing.
      noise: deviation of the initial values around the identity, in units of the identity's own.
      dtype: of all but the last convolution.
    """

    num_classes: int
    rates: tuple[int, ...]
    multiples: tuple[int, ...]
    pad_first: bool = False
    noise: float = 0.01
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[*b, h, w, C] -> [*b, h, w, C]`, float32."""
        shared: dict[str, Any] = {"use_bias": True, "kernel_init": identity_kernel(self.num_classes, self.noise)}
        for i, (rate, multiple) in enumerate(zip(self.rates, self.multiples, strict=True), start=1):
            once: str | int = sum(self.rates) if i == 1 else "valid"
            conv = Conv(
                self.num_classes * multiple,
                3,
                dilation=rate,
                padding=once if self.pad_first else rate,
                dtype=self.dtype,
                name=f"conv{i}",
                **shared,
            )
            x = nn.relu(conv(x))
        return Conv(self.num_classes, name="classifier", **shared)(x)


class Dilation(nn.Module):
    """See `build`."""

    backbone: nn.Module
    fc: FullyConnectedConvs
    num_classes: int
    context: Context | None = None
    upsampling: str = "probabilities"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """`[*b, h, w, 3]` -> `logits` float32 at the input's size; `fc7`, `front_end`, `low_logits`, `backbone/..`."""
        check_image(image, model="dilation")
        size = image.shape[-3:-1]
        counts = [samples(n, self.upsampling) for n in size]
        pads = [(MARGIN, MARGIN + STRIDE * k - n) for n, k in zip(size, counts, strict=True)]
        features = self.backbone(mirror_pad(image.astype(self.dtype), pads), train)
        fc7 = self.fc(features[f"s{STRIDE}"], train)
        small = nn.initializers.normal(0.001)
        front_end = Conv(self.num_classes, use_bias=True, kernel_init=small, name="classifier")(fc7)
        low_logits = front_end if self.context is None else self.context(front_end)
        outputs = taps_of(features) | {"fc7": fc7, "front_end": front_end, "low_logits": low_logits}
        return outputs | {"logits": self._enlarge(low_logits, size)}

    def _enlarge(self, low_logits: jax.Array, size: Sequence[int]) -> jax.Array:
        if self.upsampling == "deconvolution":
            return bilinear_conv_transpose(low_logits, kernel_size=2 * STRIDE, strides=STRIDE, padding=4, size=size)
        return enlarged_probabilities(jax.nn.log_softmax(low_logits), size)


def build(
    *,
    num_classes: int,
    backbone_options: Mapping[str, Any] | None = None,
    context: str = "basic",
    context_layers: int = 8,
    context_padding: str = "per_layer",
    context_noise: float = 0.01,
    upsampling: str = "probabilities",
    fc_channels: int = 4096,
    dropout_rate: float = 0.5,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """The dilated front end, alone or with a context module.

    Args:
      num_classes: classes, void not counted.
      backbone_options: further options of jaxseg.backbones.vgg16, for example {"width": 16}.
      context: "none", "basic" or "large".
      context_layers: 7, 8 or 10; "large" has 8.
      context_padding: "per_layer", or "first": as the released VOC network.
      context_noise: deviation of the context's initial values, in units of the identity's own; the paper's basic module
        has none.
      upsampling: "probabilities" (the logits are the logarithm of enlarged probabilities) or "deconvolution".
      fc_channels: channels of fc6 and fc7.
      dropout_rate: behind fc6 and fc7.
      remat: recompute the backbone's stages in the backward pass.
      dtype: of the computation; parameters and logits are float32.

    Returns:
      A module, `module.apply(variables, image, train)`.

    Raises:
      JaxsegError: an unknown option's value, or a number of layers that the module does not have.
    """
    for option, value, known in (
        ("context", context, CONTEXTS),
        ("context_padding", context_padding, CONTEXT_PADDINGS),
        ("upsampling", upsampling, UPSAMPLINGS),
    ):
        if value not in known:
            raise JaxsegError(f"dilation: {option} = {value!r} is not one of {', '.join(known)}.")
    if context_layers not in ((8,) if context == "large" else RATES):
        raise JaxsegError(
            f"dilation: context_layers = {context_layers} is not possible; a basic context has "
            f"{', '.join(map(str, RATES))} layers, a large one 8."
        )
    trunk = make_trunk(
        "vgg16",
        backbone_options,
        output_stride=STRIDE,
        norm_momentum=0.9,
        freeze_norm=False,
        remat=remat,
        dtype=dtype,
        padding="valid",
    )
    rates = RATES[context_layers]
    multiples = LARGE if context == "large" else (1,) * len(rates)
    pad_first = context_padding == "first"
    module = Context(num_classes, rates, multiples, pad_first, context_noise, dtype)
    return Dilation(
        backbone=trunk,
        fc=FullyConnectedConvs(fc_channels, 7, dilation=4, dropout_rate=dropout_rate, dtype=dtype),
        num_classes=num_classes,
        context=None if context == "none" else module,
        upsampling=upsampling,
        dtype=dtype,
    )
