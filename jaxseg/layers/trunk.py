"""The backbone that a network's config names, with the options that all networks give it."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.names import call_with_options, resolve


def make_trunk(
    backbone: str,
    options: Mapping[str, Any] | None,
    *,
    output_stride: int,
    norm_momentum: float,
    freeze_norm: bool,
    remat: bool,
    dtype: jnp.dtype,
    **defaults: Any,
) -> nn.Module:
    """`jaxseg.backbones.<backbone>:build` with the network's options.

    Args:
      backbone: the module's name.
      options: `config.model.backbone_options`; they win over `defaults`.
      output_stride: of the deepest features.
      norm_momentum, freeze_norm: of every batch norm.
      remat: recompute the blocks in the backward pass.
      dtype: of the computation.
      **defaults: options that the network's paper asks for.

    Raises:
      JaxsegError: unknown backbone or option, or an output stride that the backbone cannot give.
    """
    return call_with_options(
        resolve("backbones", backbone),
        defaults | dict(options or {}),
        where="config.model.backbone_options",
        output_stride=output_stride,
        norm_momentum=norm_momentum,
        freeze_norm=freeze_norm,
        remat=remat,
        dtype=dtype,
    )


def taps_of(features: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """A backbone's features as a network's taps, `backbone/<name>`."""
    return {f"backbone/{name}": value for name, value in features.items()}
