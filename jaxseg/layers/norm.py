"""Batch normalisation over the global batch, in float32."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


@dataclasses.dataclass(frozen=True)
class NormOptions:
    """What all batch norms of a part of a network share.

    Attributes:
      momentum: `running = momentum * running + (1 - momentum) * batch`; PyTorch's 0.1 is 0.9 here.
      epsilon: added to the variance.
      frozen: use the running statistics in training too, and leave them as they are (fine-tuning with small batches).
      batch_at_test: use the statistics of the batch at test too, as FC-DenseNet's authors do; a result then depends on
        what is batched together.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    frozen: bool = False
    batch_at_test: bool = False


class BatchNorm(nn.Module):
    """`(x - mean) / sqrt(variance + epsilon) * scale + bias` with statistics over all axes but the last.

    Under `jit` the means run over the global batch, on however many devices it lies. The variance is one pass over the
    data, `E[(x - s)^2] - E[x - s]^2` with s the running mean: the same number for any s, and without the cancellation
    of `E[x^2] - E[x]^2` once s is near the mean. The running variance takes the unbiased estimate, as PyTorch and
    TensorFlow do.

    Attributes:
      options: momentum, epsilon, frozen.
      dtype: of the result; statistics and parameters are float32.
    """

    options: NormOptions = NormOptions()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalises `[*b, c]`; updates `batch_stats` where it is mutable and `train` is set."""
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (c,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,), jnp.float32)
        if self.options.frozen or (not train and not self.options.batch_at_test):
            mean, var = running_mean.value, running_var.value
        else:
            mean, var = batch_moments(x, shift=running_mean.value)
            self._keep_moments(mean, var, x.size // c)
            if train and self.is_mutable_collection("batch_stats") and not self.is_initializing():
                count = x.size // c
                momentum = self.options.momentum
                running_mean.value = momentum * running_mean.value + (1 - momentum) * mean
                unbiased = var * (count / max(count - 1, 1))
                running_var.value = momentum * running_var.value + (1 - momentum) * unbiased
        factor = scale * lax.rsqrt(var + self.options.epsilon)
        y = x.astype(jnp.float32) * factor + (bias - mean * factor)
        return y.astype(self.dtype)

    def _keep_moments(self, mean: jax.Array, var: jax.Array, count: int) -> None:
        """Where the collection `batch_moments` is mutable: this batch's mean, biased variance and count in it."""
        if self.is_mutable_collection("batch_moments") and not self.is_initializing():
            for name, value in (("mean", mean), ("var", var), ("count", jnp.asarray(count, jnp.float32))):
                self.put_variable("batch_moments", name, value)


def batch_moments(x: jax.Array, *, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and (biased) variance of `[*b, c]` over all axes but the last, float32, in one pass.

    Args:
      x: `[*b, c]` floating.
      shift: `[c]`, a guess of the mean; changes rounding only.

    Returns:
      mean `[c]`, variance `[c]`, never negative.
    """
    axes = tuple(range(x.ndim - 1))
    shift = lax.stop_gradient(shift)
    centred = x.astype(jnp.float32) - shift
    mean = jnp.mean(centred, axis=axes)
    square = jnp.mean(lax.square(centred), axis=axes)
    return mean + shift, jnp.maximum(square - lax.square(mean), 0.0)
