"""A batch's mean and variance of each channel, in float32, and their gradient."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.ops.apart import apart
from jaxseg.ops.channel_sums import channel_sums

Moments = tuple[jax.Array, jax.Array]  # mean, variance of each channel


def batch_moments(x: jax.Array, *, shift: jax.Array) -> Moments:
    """Mean and (biased) variance of `[*b, c]` over all axes but the last, float32, in one pass.

    Args:
      x: `[*b, c]` floating.
      shift: `[c]`, a guess of the mean; changes rounding only.

    Returns:
      mean `[c]`, variance `[c]`, never negative.
    """
    return _completed(x, (jnp.zeros(0), jnp.zeros(0)), shift)


def followed_by(first: Moments, then: Moments) -> Moments:
    """Those of channels, then those of others."""
    return jnp.concatenate([first[0], then[0]]), jnp.concatenate([first[1], then[1]])


def completed_moments(x: jax.Array, known: Moments | None, shift: jax.Array) -> Moments:
    """`batch_moments`, of which those of the first channels are known.

    Args:
      x: `[*b, c]` floating.
      known: mean `[k]` and variance `[k]` of the first channels, k <= c; None: of none.
      shift: `[c]`, as `batch_moments`.

    Returns:
      mean `[c]`, variance `[c]`. x has its gradient from those that are made here, the known have that of theirs.
    """
    if known is None:
        return batch_moments(x, shift=shift)
    return known if len(known[0]) == x.shape[-1] else _completed(x, known, shift)


@jax.jit
def _moments(x: jax.Array, shift: jax.Array) -> Moments:
    count = x.size // x.shape[-1]
    centred = x.astype(jnp.float32) - shift
    total, squares = channel_sums(centred, lax.square(centred))
    mean = total / count
    return mean + shift, jnp.maximum(squares / count - lax.square(mean), 0.0)


@jax.custom_vjp
def _completed(x: jax.Array, known: Moments, shift: jax.Array) -> Moments:
    first = len(known[0])
    mean, var = _moments(x[..., first:], shift[first:])
    return followed_by(known, (mean, var))


def _completed_forward(x: jax.Array, known: Moments, shift: jax.Array) -> tuple[Moments, tuple[jax.Array, Moments]]:
    found = _completed(x, known, shift)
    return found, (x, (known[0], found[0]))


def _completed_backward(
    residuals: tuple[jax.Array, tuple[jax.Array, jax.Array]], g: Moments
) -> tuple[jax.Array, Moments, None]:
    x, (known, mean) = residuals
    first = len(known)
    made = [jnp.where(jnp.arange(len(mean)) < first, 0, of) for of in g]
    return moments_gradient(x, mean, (made[0], made[1])).astype(x.dtype), (g[0][:first], g[1][:first]), None


_completed.defvjp(_completed_forward, _completed_backward)


def moments_gradient(x: jax.Array, mean: jax.Array, g: Moments) -> jax.Array:
    """`(g_mean + 2 (x - mean) g_variance) / n`: the gradient of x `[*b, c]` from its moments', float32.

    Args:
      x: floating, n numbers a channel.
      mean: `[c]`, its own.
      g: gradients of mean and (biased) variance, `[c]` each.
    """
    count = x.size // x.shape[-1]
    # Numbers a channel, written before: XLA's CPU fuses what makes them, in a dense block the sum of as many terms as
    # layers read x, into the loop over all pixels.
    slope, constant = apart(jnp.stack([2 * g[1], g[0]]) / count, mean[0])
    return (x.astype(jnp.float32) - mean) * slope + constant
