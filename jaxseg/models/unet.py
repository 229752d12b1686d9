"""U-Net: convolutional networks for biomedical image segmentation (Ronneberger et al. 2015, arXiv 1505.04597).

| level | as published, for a side of 572 | channels |
|---|---|---|
| encoder 1 .. 4 | two valid 3x3 convolutions with ReLU, 2x2 max-pooling | 64, 128, 256, 512 |
| bottom | two valid 3x3 convolutions, 28 px | 1024 |
| decoder 4 .. 1 | 2x2 up-convolution, the encoder's map cropped beside it, two 3x3 convolutions | 512 .. 64 |
| classifier | 1x1, 388 px | classes |

Without padding, sides of 16 k + 60 give 16 k - 124. The logits have the input's own size all the same: the image is
mirrored 92 pixels and more beyond its borders (the paper's overlap-tile), and what is too much is cut off.

Variants: `padding="same"` with `batch_norm=True` is the network that most ports call U-Net. The authors' released
network differs from the paper: `last_up_channels=128`, `up_activation=True`. `mirror=False` takes the published tiles
and gives the logits of their centres.
Differences from the paper: none.
"""

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
from jaxseg.ops.mirror import mirror_pad
from jaxseg.ops.pooling import max_pool
from jaxseg.ops.resize import resize

PADDINGS = ("valid", "same")
UPSAMPLINGS = ("transposed", "bilinear", "nearest")

he_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def margin(depth: int) -> int:
    """Pixels that valid convolutions take off each side: `2^(d + 1) + 4 (2^d - 1)`; 92 for depth 4."""
    return 2 ** (depth + 1) + 4 * (2**depth - 1)


def tile_side(length: int, depth: int) -> int:
    """The smallest side of an input whose output is at least `length`: for depth 4, 16 k + 60; 388 gives 572."""
    step, shrink = 2**depth, 2 * margin(depth)
    first = 8 * step + 4 * (step - 1)
    return first + -(-max(length + shrink - first, 0) // step) * step


class DoubleConv(nn.Module):
    """Two 3x3 convolutions with ReLU, biased or batch-normalised."""

    features: int
    padding: str = "valid"
    norm: NormOptions | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[*b, h, w, c] -> [*b, h', w', features]`."""
        for i in (1, 2):
            conv = Conv(
                self.features,
                3,
                padding=self.padding,
                use_bias=self.norm is None,
                kernel_init=he_fan_in,
                dtype=self.dtype,
                name=f"conv{i}",
            )
            if self.norm is None:
                x = conv(x)
            else:
                x = conv_then_norm(conv, BatchNorm(self.norm, self.dtype, name=f"norm{i}"), x, train)
            x = nn.relu(x)
        return x


class UpConv(nn.Module):
    """Twice the rows and columns: a transposed 2x2 convolution of stride 2, or a resize and a 1x1 convolution.

    The windows of the transposed convolution do not overlap: it is one matrix product, its results interlaced.
    """

    features: int
    upsampling: str = "transposed"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[*b, h, w, c] -> [*b, 2 h, 2 w, features]`."""
        *batch, h, w, c = x.shape
        if self.upsampling != "transposed":
            x = resize(x, (2 * h, 2 * w), alignment="half_pixel", method=self.upsampling)
            conv = Conv(self.features, use_bias=True, kernel_init=he_fan_in, dtype=self.dtype, name="conv")
            return conv(x)
        kernel = self.param("kernel", nn.initializers.he_normal(), (2, 2, c, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        y = jnp.einsum("...hwc,ijcn->...hiwjn", x.astype(self.dtype), kernel.astype(self.dtype))
        return y.reshape(*batch, 2 * h, 2 * w, self.features) + bias.astype(self.dtype)


def centred(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The centre of h and w, or the whole with zeros around it; what is odd lies behind."""
    pads = [(0, 0)] * x.ndim
    for axis, length in zip((x.ndim - 3, x.ndim - 2), size, strict=True):
        spare = x.shape[axis] - length
        if spare > 0:
            x = jax.lax.slice_in_dim(x, spare // 2, spare // 2 + length, axis=axis)
        elif spare < 0:
            pads[axis] = (-spare // 2, -spare - -spare // 2)
    return jnp.pad(x, pads) if any(max(p) for p in pads) else x


class UNet(nn.Module):
    """See `build`."""

    num_classes: int
    width: int = 64
    depth: int = 4
    padding: str = "valid"
    mirror: bool = True
    norm: NormOptions | None = None
    upsampling: str = "transposed"
    last_up_channels: int = 0
    up_activation: bool = False
    dropout_rate: float = 0.5
    image_channels: int = 3
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """`[*b, h, w, 3]` -> `logits` `[*b, h, w, classes]` float32, taps `encoder1` .., `bottom`, `decoder1` .."""
        self._check(image)
        size: tuple[int, int] = (image.shape[-3], image.shape[-2])
        x = image
        if self.padding == "valid" and self.mirror:
            border = margin(self.depth)
            x = mirror_pad(x, [(border, tile_side(n, self.depth) - n - border) for n in size])
        shared: dict[str, Any] = {"padding": self.padding, "norm": self.norm, "dtype": self.dtype}
        block = nn.remat(DoubleConv, static_argnums=(2,)) if self.remat else DoubleConv
        dropout = Dropout(self.dropout_rate, deterministic=not train)
        outputs, skips = {}, []
        for level in range(1, self.depth + 1):
            x = block(self.width * 2 ** (level - 1), name=f"encoder{level}", **shared)(x, train)
            if level == self.depth:
                x = dropout(x)
            outputs[f"encoder{level}"] = x
            skips.append(x)
            # A map of one pixel has no window of two; everywhere else the odd row is left out, as in the ports.
            x = max_pool(x, 2, ceil=min(x.shape[-3:-1]) < 2)
        x = outputs["bottom"] = dropout(block(self.width * 2**self.depth, name="bottom", **shared)(x, train))
        for level in range(self.depth, 0, -1):
            x = self._joined(x, skips[level - 1], level)
            x = block(self.width * 2 ** (level - 1), name=f"decoder{level}", **shared)(x, train)
            outputs[f"decoder{level}"] = x
        classifier = Conv(self.num_classes, use_bias=True, kernel_init=he_fan_in, name="classifier")
        # The extra rows that the size rule asks for lie behind the image.
        rows, columns = size if self.padding == "same" or self.mirror else x.shape[-3:-1]
        outputs["logits"] = classifier(x[..., :rows, :columns, :])
        return outputs

    def _joined(self, deep: jax.Array, skip: jax.Array, level: int) -> jax.Array:
        """The up-convolved map behind the encoder's, both of one size."""
        features = self.width * 2 ** (level - 1)
        if level == 1 and self.last_up_channels:
            features = self.last_up_channels
        up = UpConv(features, self.upsampling, self.dtype, name=f"up{level}")(deep)
        up = nn.relu(up) if self.up_activation else up
        rows, columns = (skip if self.padding == "same" else up).shape[-3:-1]
        return jnp.concatenate([centred(skip, (rows, columns)), centred(up, (rows, columns))], axis=-1)

    def _check(self, image: jax.Array) -> None:
        if self.image_channels == 3 or image.ndim < 3 or image.shape[-1] != self.image_channels:
            check_image(image, model="unet")
        if self.padding == "valid" and not self.mirror:
            for n in image.shape[-3:-1]:
                if n != tile_side(n - 2 * margin(self.depth), self.depth):
                    near = tile_side(n - 2 * margin(self.depth), self.depth)
                    raise JaxsegError(
                        f"unet without padding and mirror takes sides of {2**self.depth} k + "
                        f"{4 * (2**self.depth - 1)}, at least {tile_side(1, self.depth)}; {n} is none, {near} is."
                    )


def build(
    *,
    num_classes: int,
    width: int = 64,
    depth: int = 4,
    padding: str = "valid",
    mirror: bool = True,
    batch_norm: bool = False,
    upsampling: str = "transposed",
    last_up_channels: int = 0,
    up_activation: bool = False,
    dropout_rate: float = 0.5,
    image_channels: int = 3,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    freeze_norm: bool = False,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """U-Net.

    Args:
      num_classes: classes, void not counted.
      width: channels of the first level; each level doubles them.
      depth: number of poolings.
      padding: "valid" as published, or "same": zeros around every convolution, no mirrored border.
      mirror: with valid convolutions, extend the image so that the logits have its size; False takes tiles of
        16 k + 60 and gives 16 k - 124.
      batch_norm: after every 3x3 convolution, which then has no bias.
      upsampling: "transposed" as published, or "bilinear", "nearest" (half-pixel) before a 1x1 convolution.
      last_up_channels: of the last up-convolution; 0 for `width`, 128 in the authors' release.
      up_activation: ReLU after the up-convolutions, as in the authors' release.
      dropout_rate: of the last encoder level and the bottom.
      image_channels: 3, or 1 for grey images `[*b, h, w, 1]`.
      norm_momentum, norm_epsilon, freeze_norm: batch norm.
      remat: recompute each pair of convolutions in the backward pass.
      dtype: of the computation; parameters and logits are float32.

    Returns:
      A module, `module.apply(variables, image, train)`.

    Raises:
      JaxsegError: an unknown padding or upsampling, a width or depth below 1.
    """
    if padding not in PADDINGS or upsampling not in UPSAMPLINGS:
        raise JaxsegError(
            f"unet: padding = {padding!r} is one of {', '.join(PADDINGS)}, upsampling = {upsampling!r} one of "
            f"{', '.join(UPSAMPLINGS)}."
        )
    if min(width, depth, image_channels) < 1:
        raise JaxsegError(f"unet: width = {width}, depth = {depth}, image_channels = {image_channels} are at least 1.")
    return UNet(
        num_classes=num_classes,
        width=width,
        depth=depth,
        padding=padding,
        mirror=mirror,
        norm=NormOptions(norm_momentum, norm_epsilon, freeze_norm) if batch_norm else None,
        upsampling=upsampling,
        last_up_channels=last_up_channels,
        up_activation=up_activation,
        dropout_rate=dropout_rate,
        image_channels=image_channels,
        remat=remat,
        dtype=dtype,
    )
