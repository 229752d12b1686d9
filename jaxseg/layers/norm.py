"""Batch normalisation over the global batch, in float32."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Moments = tuple[jax.Array, jax.Array]  # mean, variance of each channel


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


class _Norm(nn.Module):
    """Batch norm of pieces beside each other; its parameters and statistics are those of the whole."""

    options: NormOptions = NormOptions()
    dtype: jnp.dtype = jnp.float32

    def _normalized(
        self, pieces: Sequence[jax.Array], known: Sequence[Moments | None], train: bool, rectify: bool = False
    ) -> tuple[list[jax.Array], tuple[Moments | None, ...]]:
        """Each piece normalised (and rectified), and the moments of each as far as they are known now."""
        c = sum(piece.shape[-1] for piece in pieces)
        scale = self.param("scale", nn.initializers.ones, (c,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (c,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,), jnp.float32)
        moments = tuple(known)
        cuts = list(itertools.accumulate(piece.shape[-1] for piece in pieces[:-1]))
        if self.options.frozen or (not train and not self.options.batch_at_test):
            mean, var = running_mean.value, running_var.value
        else:
            shifts = jnp.split(running_mean.value, cuts)
            of = zip(pieces, shifts, known, strict=True)
            moments = tuple(batch_moments(piece, shift=shift) if seen is None else seen for piece, shift, seen in of)
            mean, var = (jnp.concatenate(values) for values in zip(*moments, strict=True))
            count = pieces[0].size // pieces[0].shape[-1]
            self._keep_moments(mean, var, count)
            if train and self.is_mutable_collection("batch_stats") and not self.is_initializing():
                running = running_mean.value, running_var.value
                running_mean.value, running_var.value = _moved(running, (mean, var), count, self.options.momentum)
        factor, shift = _line((mean, var), scale, bias, self.options.epsilon)
        parts = zip(pieces, jnp.split(factor, cuts), jnp.split(shift, cuts), strict=True)
        return [_on_line(x, f, s, self.dtype, rectify) for x, f, s in parts], moments

    def _keep_moments(self, mean: jax.Array, var: jax.Array, count: int) -> None:
        """Where the collection `batch_moments` is mutable: this batch's mean, biased variance and count in it."""
        if self.is_mutable_collection("batch_moments") and not self.is_initializing():
            for name, value in (("mean", mean), ("var", var), ("count", jnp.asarray(count, jnp.float32))):
                self.put_variable("batch_moments", name, value)


# Jitted, though always called under `jit`: what was traced for one layer serves all of its shape.
@functools.partial(jax.jit, static_argnames=("count", "momentum"))
def _moved(running: Moments, batch: Moments, count: int, momentum: float) -> Moments:
    """The running moments after a batch of `count` numbers a channel."""
    estimates = batch[0], batch[1] * (count / max(count - 1, 1))
    mean, var = (momentum * old + (1 - momentum) * new for old, new in zip(running, estimates, strict=True))
    return mean, var


@functools.partial(jax.jit, static_argnames="epsilon")
def _line(moments: Moments, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """`factor, shift` of `x * factor + shift`, the normalised x."""
    factor = scale * lax.rsqrt(moments[1] + epsilon)
    return factor, bias - moments[0] * factor


@functools.partial(jax.jit, static_argnames=("dtype", "rectify"))
def _on_line(x: jax.Array, factor: jax.Array, shift: jax.Array, dtype: jnp.dtype, rectify: bool) -> jax.Array:
    y = (x.astype(jnp.float32) * factor + shift).astype(dtype)
    return nn.relu(y) if rectify else y


class BatchNorm(_Norm):
    """`(x - mean) / sqrt(variance + epsilon) * scale + bias` with statistics over all axes but the last.

    Under `jit` the means run over the global batch, on however many devices it lies. The variance is one pass over the
    data, `E[(x - s)^2] - E[x - s]^2` with s the running mean: the same number for any s, and without the cancellation
    of `E[x^2] - E[x]^2` once s is near the mean. The running variance takes the unbiased estimate, as PyTorch and
    TensorFlow do.

    Attributes:
      options: momentum, epsilon, frozen.
      dtype: of the result; statistics and parameters are float32.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalises `[*b, c]`; updates `batch_stats` where it is mutable and `train` is set."""
        return self._normalized((x,), (None,), train)[0][0]


class Stack(NamedTuple):
    """Feature maps beside each other in a dense block, and the moments of each once a norm has made them.

    Attributes:
      pieces: `[*b, h, w, c1]`, `[*b, h, w, c2]`, ..
      moments: of each piece, or None.
    """

    pieces: tuple[jax.Array, ...]
    moments: tuple[Moments | None, ...]

    @classmethod
    def of(cls, *pieces: jax.Array) -> "Stack":
        """Pieces that no norm has seen."""
        return cls(pieces, (None,) * len(pieces))

    def before(self, other: "Stack") -> "Stack":
        """This one's pieces, then the other's."""
        return Stack(self.pieces + other.pieces, self.moments + other.moments)

    def whole(self) -> jax.Array:
        """`[*b, h, w, c1 + c2 + ..]`."""
        return jnp.concatenate(self.pieces, axis=-1)


class StackNorm(_Norm):
    """ReLU of `BatchNorm` of a stack, of which earlier layers of a dense block have seen most.

    A channel's moments are the same in every layer that reads it, so that each is summed once in the whole network, and
    its gradient is made of one term a layer and one for the moments (DenseNet: up to 2 L terms otherwise).
    """

    @nn.compact
    def __call__(self, stack: Stack, train: bool) -> tuple[jax.Array, Stack]:
        """Normalises and rectifies the whole stack.

        Args:
          stack: floating pieces, with the moments that an earlier call returned.
          train: as `BatchNorm`.

        Returns:
          `[*b, c1 + c2 + ..]`, and the stack with all moments; with those it had where the running ones are used.
        """
        # Rectified piece by piece: after the concatenation XLA's CPU would write both.
        pieces, moments = self._normalized(stack.pieces, stack.moments, train, rectify=True)
        return jnp.concatenate(pieces, axis=-1), Stack(stack.pieces, moments)


@jax.jit
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
