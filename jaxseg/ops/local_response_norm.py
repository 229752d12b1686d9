"""Local response normalisation across channels (AlexNet, SegNet-Basic)."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def local_response_norm(
    x: jax.Array, window: int = 5, *, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> jax.Array:
    """`x / (k + alpha / n * sum over n neighbouring channels of x^2) ** beta`, Caffe's across channels.

    Args:
      x: `[..., c]` floating.
      window: n, channels in the sum: `c - n // 2` to `c + (n - 1) // 2`.
      alpha, beta, k: as in the formula; note the division by n, which AlexNet's paper does not have.

    Returns:
      An array as x; computed in float32.

    Reference: Krizhevsky et al. 2012, section 3.3; Caffe's LRN layer.
    """
    channel = np.arange(x.shape[-1])
    offset = channel[:, None] - channel
    band = ((offset >= -(window // 2)) & (offset <= (window - 1) // 2)).astype(np.float32)
    exact = x.astype(jnp.float32)
    squares = jnp.einsum("...m,mn->...n", lax.square(exact), band, precision="highest")
    return (exact * (k + alpha / window * squares) ** -beta).astype(x.dtype)
