"""Dropout (Srivastava et al. 2014, JMLR 15), one random word a decision.

The random bits are the layer's cost, if they are Threefry's: on two cores, 3x224x224x96 numbers, 173 ms with flax's
Dropout and a key of `jax.random.key`, 4.1 with this one and a key of `core.rng.step_keys`, as long as reading and
writing the numbers takes. FC-DenseNet56 draws 42 million decisions a step at 224 px and batch 3.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.core.errors import JaxsegError

WORDS = 2**32


class Dropout(nn.Module):
    """`x / p` with probability p, else 0; in expectation x.

    `p = round((1 - rate) 2^32) / 2^32`. A pure function of the key "dropout" and the shape, on any number of devices.

    Attributes:
      rate: share of numbers that become 0, in [0, 1).
      broadcast_dims: axes along which the decision is the same.
      deterministic: leave x as it is.
    """

    rate: float
    broadcast_dims: Sequence[int] = ()
    deterministic: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool | None = None) -> jax.Array:
        """`[*b, c]` floating, of the same shape and dtype; `deterministic` given here goes before the attribute."""
        if not 0 <= self.rate < 1:
            raise JaxsegError(f"The dropout rate {self.rate} must lie in [0, 1).")
        if self.rate == 0 or (self.deterministic if deterministic is None else deterministic):
            return x
        shape = list(x.shape)
        for axis in self.broadcast_dims:
            shape[axis] = 1
        kept = min(max(round((1 - self.rate) * WORDS), 1), WORDS - 1)
        mask = jax.random.bits(self.make_rng("dropout"), shape, jnp.uint32) < jnp.uint32(kept)
        scaled = x * jnp.asarray(WORDS / kept, x.dtype)
        return lax.select(jnp.broadcast_to(mask, x.shape), scaled, jnp.zeros_like(x))
