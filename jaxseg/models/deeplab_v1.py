"""DeepLab v1: deep convolutional nets and fully connected CRFs (Chen et al. 2014, arXiv 1412.7062).

| layer                  | kernel, stride, rate     | channels       | side  |
|------------------------|--------------------------|----------------|-------|
| image                  |                          | 3              | 321   |
| stages 1 to 3          | 3x3; max-pooling 3x3, /2 | 64, 128, 256   | 41    |
| stage 4                | 3x3; max-pooling 3x3, /1 | 512            | 41    |
| stage 5                | 3x3, rate 2; max-pooling 3x3, /1; "large_fov": mean 3x3 | 512 | 41 |
| fc6, fc7               | below                    | 1024 or 4096   | 41    |
| classifier             | 1x1                      | classes        | 41    |

| variant   | fc6                 | channels |
|-----------|---------------------|----------|
| large_fov | 3x3, rate 12        | 1024     |
| 7x7       | 7x7, rate 4         | 4096     |
| 4x4       | 4x4, rate 4 (or 8)  | 4096     |

MSc (`multi_scale=True`) looks at the image and at the outputs of the first four poolings as well: each through a 3x3
and a 1x1 convolution of 128 channels. The released network classifies each by itself and adds the scores, which is
the paper's one classifier on their concatenation: both are linear, as is the enlargement between them.

Differences from the paper: the 7x7 and 4x4 networks pool 3x3 as the others do (the releases: 2x2, with padding, for
images of 8 k + 2 pixels). Training sees logits at full size, where the authors shrink the labels. Pooling windows are
counted up, so the map covers images of any size; scores are enlarged on its grid. The CRF is not part of the network.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.errors import JaxsegError
from jaxseg.core.types import Outputs
from jaxseg.layers.conv_norm import Conv
from jaxseg.layers.dropout import Dropout
from jaxseg.layers.fully_connected import FullyConnectedConvs
from jaxseg.layers.heads import rates_at, zoomed
from jaxseg.layers.image import check_image, check_output_stride
from jaxseg.layers.trunk import make_trunk, taps_of
from jaxseg.ops.pooling import average_pool
from jaxseg.ops.zoom import zoom

OUTPUT_STRIDES = (8, 16, 32)
# Kernel of fc6, its rate at output stride 8, channels, and whether a mean over 3x3 pixels follows pool5.
VARIANTS = {"large_fov": (3, 12, 1024, True), "7x7": (7, 4, 4096, False), "4x4": (4, 4, 4096, False)}
CLASSIFIER = nn.initializers.normal(0.01)


class ScaleBranch(nn.Module):
    """MSc's 3x3 and 1x1 convolution with ReLU and dropout, and their classifier: `[*b, h, w, c]` to float32 scores."""

    num_classes: int
    features: int = 128
    dropout_rate: float = 0.5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[*b, h, w, c] -> [*b, h, w, classes]`."""
        for i, kernel_size in enumerate((3, 1), start=1):
            conv = Conv(self.features, kernel_size, use_bias=True, dtype=self.dtype, name=f"conv{i}")
            x = Dropout(self.dropout_rate, deterministic=not train, name=f"dropout{i}")(nn.relu(conv(x)))
        return Conv(self.num_classes, use_bias=True, kernel_init=CLASSIFIER, name="classifier")(x)


class DeepLabV1(nn.Module):
    """See `build`."""

    backbone: nn.Module
    fc: FullyConnectedConvs
    num_classes: int
    output_stride: int
    mean_pooling: bool = False
    multi_scale: bool = False
    scale_channels: int = 128
    dropout_rate: float = 0.5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """`[*b, h, w, 3]` -> `logits` float32 at the input's size; taps `fc7`, `low_logits`, `backbone/<name>`."""
        check_image(image, model="deeplab_v1")
        size = image.shape[-3:-1]
        x = image.astype(self.dtype)
        features = self.backbone(x, train)
        deepest = features["pool5"]
        if self.mean_pooling:
            deepest = average_pool(deepest, 3, strides=1, padding=1)
        fc7 = self.fc(deepest, train)
        low_logits = Conv(self.num_classes, use_bias=True, kernel_init=CLASSIFIER, name="classifier")(fc7)
        outputs = taps_of(features) | {"fc7": fc7, "low_logits": low_logits}
        if not self.multi_scale:
            return outputs | zoomed("logits", low_logits, self.output_stride, size)
        logits = zoom(low_logits, self.output_stride, size)
        scales = {"image": (x, 1)} | {
            f"pool{i}": (features[f"pool{i}"], min(2**i, self.output_stride)) for i in (1, 2, 3, 4)
        }
        for name, (tap, stride) in scales.items():
            options = self.num_classes, self.scale_channels, self.dropout_rate, self.dtype
            logits = logits + zoom(ScaleBranch(*options, name=f"scale_{name}")(tap, train), stride, size)
        return outputs | {"logits": logits}


def build(
    *,
    num_classes: int,
    backbone_options: Mapping[str, Any] | None = None,
    output_stride: int = 8,
    variant: str = "large_fov",
    atrous_rate: int = 0,
    fc_channels: int = 0,
    multi_scale: bool = False,
    scale_channels: int = 128,
    dropout_rate: float = 0.5,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """DeepLab v1.

    Args:
      num_classes: classes, void not counted.
      backbone_options: further options of jaxseg.backbones.vgg16, for example {"width": 16}.
      output_stride: 8 is the paper's; 16 or 32 halve or quarter the rates, too.
      variant: "large_fov", "7x7" or "4x4".
      atrous_rate: of fc6 at output stride 8; 0 for the variant's own.
      fc_channels: channels of fc6 and fc7; 0 for the variant's own.
      multi_scale: MSc.
      scale_channels: channels of its convolutions.
      dropout_rate: behind fc6, fc7 and MSc's convolutions.
      remat: recompute the backbone's stages in the backward pass.
      dtype: of the computation; parameters and logits are float32.

    Returns:
      A module, `module.apply(variables, image, train)`.

    Raises:
      JaxsegError: an unknown variant, an impossible output stride or rate.
    """
    check_output_stride(output_stride, allowed=OUTPUT_STRIDES, model="deeplab_v1")
    if variant not in VARIANTS:
        raise JaxsegError(f"deeplab_v1: variant = {variant!r} is not one of {', '.join(VARIANTS)}.")
    kernel_size, own_rate, own_channels, mean_pooling = VARIANTS[variant]
    (rate,) = rates_at((atrous_rate or own_rate,), output_stride, model="deeplab_v1", stated_at=8)
    trunk = make_trunk(
        "vgg16",
        backbone_options,
        output_stride=output_stride,
        norm_momentum=0.9,
        freeze_norm=False,
        remat=remat,
        dtype=dtype,
        pool_window=3,
        ceil=True,
    )
    fc = FullyConnectedConvs(fc_channels or own_channels, kernel_size, rate, "same", dropout_rate, dtype)
    return DeepLabV1(
        backbone=trunk,
        fc=fc,
        num_classes=num_classes,
        output_stride=output_stride,
        mean_pooling=mean_pooling,
        multi_scale=multi_scale,
        scale_channels=scale_channels,
        dropout_rate=dropout_rate,
        dtype=dtype,
    )
