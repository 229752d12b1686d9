"""SCNet, a simplified encoder-decoder (Yasrab, Gu and Zhang, ICCSNT 2016; no arXiv id): a RECONSTRUCTION.

Neither the paper's text nor code of it is publicly at hand; only a figure's caption is known. What stands here is a
guess that agrees with it and with the first author's later networks, and no accuracy is claimed for it:

| part | layers |
|---|---|
| encoder | VGG-16's thirteen 3x3 convolutions with batch norm and ReLU, max-pooling that keeps the places |
| dropout | 0.5 after the three deepest poolings |
| decoder | unpooling by indices and one 3x3 convolution a stage: 512, 256, 128, 64, 64 |
| classifier | 3x3 |

Differences from the paper: unknown.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from jaxseg.layers.norm import NormOptions
from jaxseg.models.segnet import ENCODER, SegNet, Stages, check_stages

DECODER = ((512,), (256,), (128,), (64,), (64,))


def build(
    *,
    num_classes: int,
    encoder: Sequence[Sequence[int]] = ENCODER,
    decoder: Sequence[Sequence[int]] = DECODER,
    unpooling: str = "indices",
    dropout_rate: float = 0.5,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    freeze_norm: bool = False,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """The reconstruction of SCNet.

    Args:
      num_classes: classes, void not counted.
      dropout_rate: after the three deepest poolings.
      encoder, decoder, unpooling, norm_momentum, norm_epsilon, freeze_norm, remat, dtype: as
        `jaxseg.models.segnet.build`.

    Returns:
      A module, `module.apply(variables, image, train)`.

    Raises:
      JaxsegError: an unknown unpooling, or stages that do not fit each other.
    """
    encoder_stages: Stages = tuple(map(tuple, encoder))
    decoder_stages: Stages = tuple(map(tuple, decoder))
    check_stages(encoder_stages, decoder_stages, unpooling, model="scnet_recon")
    return SegNet(
        num_classes=num_classes,
        encoder=encoder_stages,
        decoder=decoder_stages,
        unpooling=unpooling,
        dropout_rate=dropout_rate,
        dropout_from=len(encoder_stages) - 2,
        norm=NormOptions(norm_momentum, norm_epsilon, freeze_norm),
        remat=remat,
        dtype=dtype,
    )
