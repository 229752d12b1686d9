"""GCN: large kernel matters, the global convolutional network (Peng et al. 2017, arXiv 1703.02719).

Differences from the paper: scores are up-sampled bilinearly, as in the public PyTorch port, where the paper learns
deconvolutions.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.errors import JaxsegError
from jaxseg.core.types import Outputs
from jaxseg.layers.conv_norm import Conv
from jaxseg.layers.image import check_image
from jaxseg.layers.trunk import make_trunk, taps_of
from jaxseg.ops.resize import resize

LEVELS = ("s4", "s8", "s16", "s32")


class GlobalConvolution(nn.Module):
    """A k x k kernel as two paths of k x 1 and 1 x k convolutions, summed; no batch norm, no ReLU."""

    features: int
    kernel_size: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[*b, h, w, c] -> [*b, h, w, features]`."""
        tall, wide = (self.kernel_size, 1), (1, self.kernel_size)
        shared: dict[str, Any] = {"use_bias": True, "dtype": self.dtype}
        left = Conv(self.features, wide, name="left2", **shared)(Conv(self.features, tall, name="left1", **shared)(x))
        right = Conv(self.features, wide, name="right1", **shared)(x)
        return left + Conv(self.features, tall, name="right2", **shared)(right)


class BoundaryRefinement(nn.Module):
    """`x + conv3x3(ReLU(conv3x3(x)))`, of as many channels as x."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[*b, h, w, c] -> [*b, h, w, c]`."""
        shared: dict[str, Any] = {"use_bias": True, "dtype": self.dtype}
        y = nn.relu(Conv(x.shape[-1], 3, name="conv1", **shared)(x))
        return x + Conv(x.shape[-1], 3, name="conv2", **shared)(y)


class GCN(nn.Module):
    """See `build`."""

    backbone: nn.Module
    num_classes: int
    kernel_size: int
    boundary_refinement: bool
    alignment: str
    dtype: jnp.dtype

    def refine(self, x: jax.Array, name: str) -> jax.Array:
        """Boundary refinement, where it is switched on."""
        return BoundaryRefinement(self.dtype, name=name)(x) if self.boundary_refinement else x

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """`[*b, h, w, 3]` -> `logits` float32 at the input's size, taps `scores1` (fine) .. `scores4`."""
        check_image(image, model="gcn")
        size = image.shape[-3:-1]
        features = self.backbone(image.astype(self.dtype), train)
        outputs: Outputs = taps_of(features)
        total: jax.Array | None = None
        for i in reversed(range(len(LEVELS))):
            x = features[LEVELS[i]]
            scores = GlobalConvolution(self.num_classes, self.kernel_size, self.dtype, name=f"global{i + 1}")(x)
            scores = self.refine(scores, f"refine{i + 1}")
            outputs[f"scores{i + 1}"] = scores
            if total is None:
                total = scores
                continue
            total = scores + resize(total, scores.shape[-3:-1], alignment=self.alignment)
            total = self.refine(total, f"refine_sum{i + 1}")
        assert total is not None
        half = resize(total, features["s2"].shape[-3:-1], alignment=self.alignment)
        half = self.refine(half, "refine_half")
        logits = self.refine(resize(half, size, alignment=self.alignment), "refine_full")
        return outputs | {"logits": logits.astype(jnp.float32)}


def build(
    *,
    num_classes: int,
    backbone: str = "resnet152",
    backbone_options: Mapping[str, Any] | None = None,
    kernel_size: int = 15,
    boundary_refinement: bool = True,
    alignment: str = "align_corners",
    norm_momentum: float = 0.9,
    freeze_norm: bool = False,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """The global convolutional network.

    Args:
      num_classes: classes, void not counted.
      backbone: name of a module of jaxseg.backbones that gives s2, s4, s8, s16 and s32.
      backbone_options: further options of its build().
      kernel_size: k of the global convolutions, odd; 15 is the paper's best, 7 the public port's.
      boundary_refinement: the nine residual blocks on scores.
      alignment: of all resizing.
      norm_momentum: of the backbone's batch norms; the rest has none.
      freeze_norm: running statistics in training too (the paper's fine-tuning).
      remat: recompute the backbone's blocks in the backward pass.
      dtype: of the computation; parameters and logits are float32.

    Returns:
      A module, `module.apply(variables, image, train)`.

    Raises:
      JaxsegError: unknown backbone or option, an even kernel.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise JaxsegError(f"gcn: kernel_size = {kernel_size} must be odd and positive.")
    trunk = make_trunk(
        backbone,
        backbone_options,
        output_stride=32,
        norm_momentum=norm_momentum,
        freeze_norm=freeze_norm,
        remat=remat,
        dtype=dtype,
    )
    return GCN(
        backbone=trunk,
        num_classes=num_classes,
        kernel_size=kernel_size,
        boundary_refinement=boundary_refinement,
        alignment=alignment,
        dtype=dtype,
    )
