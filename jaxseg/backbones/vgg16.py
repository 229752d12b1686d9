"""VGG-16 (Simonyan, Zisserman 2014, arXiv 1409.1556, configuration D) without its classifier.

| stage    | convolutions 3x3 | pooling after it |
|----------|------------------|------------------|
| stage1   | 64, 64           | pool1            |
| stage2   | 128, 128         | pool2            |
| stage3   | 256 x 3          | pool3            |
| stage4   | 512 x 3          | pool4            |
| stage5   | 512 x 3          | pool5            |

Differences from the paper: none with the default options. Variants, as the networks that stand on it publish them:
FCN pads the first convolution by 100 and counts pooling windows up; SegNet adds batch norm and keeps the positions of
the maxima; DeepLab v1 and v2 pool 3x3, with stride 1 above the output stride; the dilated front end pads nothing and
leaves the pooling above the output stride out. Convolutions behind a lost stride have the atrous rate that makes up
for it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.errors import JaxsegError
from jaxseg.layers.conv_norm import Conv, conv_then_norm
from jaxseg.layers.image import check_output_stride
from jaxseg.layers.norm import BatchNorm, NormOptions
from jaxseg.ops.pooling import max_pool, max_pool_with_indices

# Convolutions of each stage, and their channels in units of the first stage's.
STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))
OUTPUT_STRIDES = (8, 16, 32)
PADDINGS = ("torch", "valid")


class ConvStage(nn.Module):
    """Convolutions with bias, batch norm where asked for, and ReLU, one after another: `conv1`, `norm1`, `conv2`, ...

    Attributes:
      features: output channels of each convolution.
      kernel_size, dilation: of all of them.
      padding: as `Conv`.
      first_padding: of the first one, where it differs.
      batch_norm: between convolution and ReLU.
    """

    features: tuple[int, ...]
    kernel_size: int = 3
    dilation: int = 1
    padding: str | int = "torch"
    first_padding: int | None = None
    batch_norm: bool = False
    norm: NormOptions = NormOptions()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[*b, h, w, c] -> [*b, h', w', features[-1]]`."""
        for i, features in enumerate(self.features, start=1):
            special = i == 1 and self.first_padding is not None
            conv = Conv(
                features,
                self.kernel_size,
                dilation=self.dilation,
                padding=self.first_padding if special else self.padding,  # type: ignore[arg-type]
                use_bias=True,
                dtype=self.dtype,
                name=f"conv{i}",
            )
            if self.batch_norm:
                x = conv_then_norm(conv, BatchNorm(self.norm, self.dtype, name=f"norm{i}"), x, train)
            else:
                x = conv(x)
            x = nn.relu(x)
        return x


class VGG16(nn.Module):
    """The 13 convolutions. See `build` for the attributes."""

    output_stride: int = 32
    batch_norm: bool = False
    padding: str = "torch"
    first_padding: int | None = None
    pool_window: int = 2
    ceil: bool = False
    indices: bool = False
    width: int = 64
    norm: NormOptions = NormOptions()
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool) -> dict[str, jax.Array]:
        """`[*b, h, w, 3]` -> features by stride, taps `stage1` .. `stage5`, `pool1` .. `pool5`, `indices1` .."""
        stage_of = nn.remat(ConvStage, static_argnums=(2,)) if self.remat else ConvStage
        features: dict[str, jax.Array] = {}
        x, stride, rate = image, 1, 1
        for index, (units, multiple) in enumerate(STAGES, start=1):
            x = stage_of(
                (self.width * multiple,) * units,
                dilation=rate,
                padding=self.padding,
                first_padding=self.first_padding if index == 1 else None,
                batch_norm=self.batch_norm,
                norm=self.norm,
                dtype=self.dtype,
                name=f"stage{index}",
            )(x, train)
            features[f"stage{index}"] = features[f"s{stride}"] = x
            lost = stride * 2 > self.output_stride
            stride, rate = (stride, rate * 2) if lost else (stride * 2, rate)
            x = self._pool(x, index, lost, features)
            features[f"pool{index}"] = features[f"s{stride}"] = x
        return features

    def _pool(self, x: jax.Array, index: int, lost: bool, features: dict[str, jax.Array]) -> jax.Array:
        if self.pool_window == 3:
            return max_pool(x, 3, strides=1 if lost else 2, padding=1, ceil=self.ceil)
        if lost:
            return x
        if not self.indices:
            return max_pool(x, 2, ceil=self.ceil)
        x, features[f"indices{index}"] = max_pool_with_indices(x, 2, ceil=self.ceil)
        return x


def build(
    *,
    output_stride: int = 32,
    batch_norm: bool = False,
    padding: str = "torch",
    first_padding: int | None = None,
    pool_window: int = 2,
    ceil: bool = False,
    indices: bool = False,
    width: int = 64,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    freeze_norm: bool = False,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """VGG-16 as a backbone.

    Args:
      output_stride: 8, 16 or 32. Above it the pooling keeps the size (`pool_window` 3) or is left out (2), and the
        convolutions after it are dilated.
      batch_norm: after each convolution (which keeps its bias, as in torchvision and SegNet).
      padding: "torch", which keeps the size, or "valid": none (the dilated front end).
      first_padding: of the first convolution, where it differs (FCN: 100); None: as `padding`.
      pool_window: 2, or 3 with padding 1 (DeepLab v1 and v2).
      ceil: count pooling windows up as Caffe does; without it an image needs at least 32 pixels a side.
      indices: keep the positions of the maxima as taps `indices1` .. `indices5` (pool_window 2), int8, see
        `jaxseg.ops.pooling.max_pool_with_indices`.
      width: channels of the first stage; 64 is the paper's.
      norm_momentum, norm_epsilon, freeze_norm: batch norm.
      remat: recompute each stage in the backward pass instead of storing what is inside it.
      dtype: of the computation.

    Returns:
      A module: `module(image, train)` -> {"s1": 64 channels, "s2": 128, "s4": 256, "s8": 512, "s16": 512, "s32": 512}:
      the stage of that stride, and for the deepest one pool5; taps "stage1" .. "stage5", "pool1" .. "pool5",
      "indices1" .. "indices5". `pool4` and `pool5` are there where they keep the size or are left out, too.

    Raises:
      JaxsegError: an output stride, padding or pooling window that it does not have; indices of a 3x3 window.
    """
    check_output_stride(output_stride, allowed=OUTPUT_STRIDES, model="vgg16")
    if padding not in PADDINGS:
        raise JaxsegError(f"vgg16: padding = {padding!r} is not one of {', '.join(PADDINGS)}.")
    if pool_window not in (2, 3):
        raise JaxsegError(f"vgg16: pool_window = {pool_window} is not 2 or 3.")
    if indices and pool_window != 2:
        raise JaxsegError("vgg16: indices = True needs pool_window = 2; windows of 3 overlap.")
    return VGG16(
        output_stride=output_stride,
        batch_norm=batch_norm,
        padding=padding,
        first_padding=first_padding,
        pool_window=pool_window,
        ceil=ceil,
        indices=indices,
        width=width,
        norm=NormOptions(norm_momentum, norm_epsilon, freeze_norm),
        remat=remat,
        dtype=dtype,
    )
