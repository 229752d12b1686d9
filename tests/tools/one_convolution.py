"""The smallest network that a config can name: one 3x3 convolution, whose parameters and FLOPs are known."""

import flax.linen as nn
import jax.numpy as jnp


class OneConvolution(nn.Module):
    """Logits of the image's size."""

    num_classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, image, train=False):
        """`[*b, h, w, 3]` -> `logits` `[*b, h, w, classes]`."""
        return {"logits": nn.Conv(self.num_classes, (3, 3), dtype=self.dtype)(image).astype(jnp.float32)}


def build(*, num_classes, dtype):
    """Called by name, `tests.tools.one_convolution`."""
    return OneConvolution(num_classes, dtype)
