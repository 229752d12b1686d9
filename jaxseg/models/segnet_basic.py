"""SegNet-Basic (Badrinarayanan et al. 2015, arXiv 1505.07293), see `jaxseg.models.segnet`."""

import flax.linen as nn
import jax.numpy as jnp

from jaxseg.layers.norm import NormOptions
from jaxseg.models.segnet import SegNet, check_stages


def build(
    *,
    num_classes: int,
    width: int = 64,
    unpooling: str = "indices",
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    freeze_norm: bool = False,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """SegNet-Basic.

    Args:
      num_classes: classes, void not counted.
      width: channels of all eight 7x7 convolutions.
      unpooling, norm_momentum, norm_epsilon, freeze_norm, remat, dtype: as `jaxseg.models.segnet.build`.

    Returns:
      A module, `module.apply(variables, image, train)`.

    Raises:
      JaxsegError: an unknown unpooling.
    """
    stages = ((width,),) * 4
    check_stages(stages, stages, unpooling, model="segnet_basic")
    return SegNet(
        num_classes=num_classes,
        encoder=stages,
        decoder=stages,
        kernel_size=7,
        classifier_size=1,
        decoder_relu=False,
        normalize_input=True,
        unpooling=unpooling,
        norm=NormOptions(norm_momentum, norm_epsilon, freeze_norm),
        remat=remat,
        dtype=dtype,
    )
