"""Batch normalisation over the global batch, in float32."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.layers.moments import Moments, batch_moments, completed_moments
from jaxseg.layers.stack import Maps
from jaxseg.ops.channel_sums import channel_sums

Line = tuple[jax.Array, jax.Array]  # factor, shift: of `x * factor + shift`


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

    def of_batch(self, train: bool) -> bool:
        """Whether the batch's own statistics are used."""
        return not self.frozen and (train or self.batch_at_test)


class _Norm(nn.Module):
    """A batch norm's parameters and running statistics, and the line that they make of a batch's moments."""

    options: NormOptions = NormOptions()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def line(self, moments: Moments | None, channels: int, count: int, train: bool) -> Line:
        """`factor, shift` `[channels]` of `x * factor + shift`, the normalised x; updates `batch_stats` in training.

        Args:
          moments: of a batch of `count` numbers a channel; None: the running ones.
          channels, count: of x.
          train: whether `batch_stats`, where it is mutable, takes the batch in.
        """
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        if moments is None:
            return _line((running_mean.value, running_var.value), scale, bias, self.options.epsilon)
        if not self.is_initializing():
            if self.is_mutable_collection("batch_moments"):
                for name, value in zip(("mean", "var", "count"), (*moments, float(count)), strict=True):
                    self.put_variable("batch_moments", name, jnp.asarray(value, jnp.float32))
            if train and self.is_mutable_collection("batch_stats"):
                running = running_mean.value, running_var.value
                running_mean.value, running_var.value = _moved(running, moments, count, self.options.momentum)
        return _line(moments, scale, bias, self.options.epsilon)

    def shift(self, channels: int) -> jax.Array:
        """`[channels]`: the running mean, from which `batch_moments` measures."""
        if self.has_variable("batch_stats", "mean"):
            return self.get_variable("batch_stats", "mean")
        return jnp.zeros(channels)


# Jitted, though always called under `jit`: what was traced for one layer serves all of its shape.
@functools.partial(jax.jit, static_argnames=("count", "momentum"))
def _moved(running: Moments, batch: Moments, count: int, momentum: float) -> Moments:
    """The running moments after a batch of `count` numbers a channel."""
    estimates = batch[0], batch[1] * (count / max(count - 1, 1))
    mean, var = (momentum * old + (1 - momentum) * new for old, new in zip(running, estimates, strict=True))
    return mean, var


@functools.partial(jax.jit, static_argnames="epsilon")
def _line(moments: Moments, scale: jax.Array, bias: jax.Array, epsilon: float) -> Line:
    """`factor, shift` of `x * factor + shift`, the normalised x."""
    factor = scale * lax.rsqrt(moments[1] + epsilon)
    return factor, bias - moments[0] * factor


@functools.partial(jax.jit, static_argnames="dtype")
def _on_line(x: jax.Array, factor: jax.Array, shift: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return (x.astype(jnp.float32) * factor + shift).astype(dtype)


def times_factor(kernel: jax.Array, line: Line) -> jax.Array:
    """A convolution's kernel, times a norm's factor where the platform is an NVIDIA GPU.

    cuDNN and cuBLAS add a shift, and what is beside it in a residual unit, and rectify, as they write the values; a
    factor they have no place for, and it takes all of that into an operation of its own, which reads and writes the
    values once more. In a CPU's and a TPU's programs the factor costs nothing beside the shift.

    Args:
      kernel: `[kh, kw, c, n]` float32.
      line: factor and shift, `[n]` float32.
    """
    return lax.platform_dependent(kernel, line[0], cuda=jnp.multiply, default=lambda kernel, _: kernel)


def on_rest_of_line(y: jax.Array, bias: jax.Array | None, line: Line, dtype: jnp.dtype) -> jax.Array:
    """`(convolution + bias) * factor + shift` of the values y that `times_factor`'s kernel gives.

    Args:
      y: `[*b, n]` floating.
      bias: `[n]` float32, or None.
      line: factor and shift, `[n]` float32.
      dtype: of the result; on an NVIDIA GPU of the sum too.
    """

    def shifted(y: jax.Array, bias: jax.Array | None, factor: jax.Array, shift: jax.Array) -> jax.Array:
        shift = shift if bias is None else shift + bias * factor
        return y.astype(dtype) + shift.astype(dtype)

    def whole(y: jax.Array, bias: jax.Array | None, factor: jax.Array, shift: jax.Array) -> jax.Array:
        y = y if bias is None else y + bias.astype(y.dtype)
        return _on_line(y, factor, shift, dtype)

    return lax.platform_dependent(y, bias, *line, cuda=shifted, default=whole)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalized(x: jax.Array, factor: jax.Array, shift: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`x * factor + shift` of `[*b, c]`, computed in float32, of the dtype given."""
    return _on_line(x, factor, shift, dtype)


def _normalized_forward(x: jax.Array, factor: jax.Array, shift: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, Any]:
    return _on_line(x, factor, shift, dtype), (x, factor)


def _normalized_backward(
    dtype: jnp.dtype, residuals: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    del dtype
    return _line_gradient(*residuals, g)


def _line_gradient(x: jax.Array, factor: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of x, factor and shift for the cotangent of `x * factor + shift`."""
    part = g.astype(jnp.float32)
    of_factor, of_shift = channel_sums(x.astype(jnp.float32) * part, part)
    return (part * factor).astype(x.dtype), of_factor, of_shift


normalized.defvjp(_normalized_forward, _normalized_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def rectified(x: jax.Array, factor: jax.Array, shift: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`relu(x * factor + shift)` of `[*b, c]`, computed in float32, of the dtype given."""
    return nn.relu(_on_line(x, factor, shift, dtype))


def _rectified_forward(x: jax.Array, factor: jax.Array, shift: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, Any]:
    return rectified(x, factor, shift, dtype), (x, factor, shift)


def _rectified_backward(dtype: jnp.dtype, residuals: Any, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, factor, shift = residuals
    return rectified_gradient(x, factor, shift, g, dtype)


rectified.defvjp(_rectified_forward, _rectified_backward)


def rectified_gradient(
    x: jax.Array, factor: jax.Array, shift: jax.Array, g: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of `rectified`'s x (in x's dtype), factor and shift (float32) for its cotangent.

    Where x's line is positive is found again from x, which is there anyway: no mask is kept.
    """
    above = _on_line(x, factor, shift, dtype) > 0
    return _line_gradient(x, factor, jnp.where(above, g, jnp.zeros((), g.dtype)))


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

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalises `[*b, c]`; updates `batch_stats` where it is mutable and `train` is set."""
        c = x.shape[-1]
        moments = batch_moments(x, shift=self.shift(c)) if self.options.of_batch(train) else None
        return normalized(x, *self.line(moments, c, x.size // c, train), self.dtype)


class StackNorm(_Norm):
    """ReLU of `BatchNorm` of a stack, of which earlier layers of a dense block have seen most.

    A channel's moments are the same in every layer that reads it, so that each is summed once in the whole network.
    """

    def moments(self, stack: Maps, train: bool) -> Moments | None:
        """Of the whole stack: those that it knows, and the others; None where the running ones are used."""
        if not self.options.of_batch(train):
            return None
        shift, first, found = self.shift(stack.channels), 0, []
        for piece, known in zip(stack.pieces, stack.moments, strict=True):
            end = first + piece.shape[-1]
            found.append(completed_moments(piece, known, shift[first:end]))
            first = end
        mean, var = (jnp.concatenate(values) if len(values) > 1 else values[0] for values in zip(*found, strict=True))
        return mean, var

    def __call__(self, stack: Maps, train: bool) -> tuple[jax.Array, Maps]:
        """Normalises and rectifies the whole stack.

        Args:
          stack: floating pieces, with the moments that an earlier call returned.
          train: as `BatchNorm`.

        Returns:
          `[*b, c1 + c2 + ..]`, and the stack with all moments; with those it had where the running ones are used.
        """
        c, x = stack.channels, stack.whole()
        moments = self.moments(stack, train)
        factor, shift = self.line(moments, c, x.size // c, train)
        return rectified(x, factor, shift, self.dtype), stack.with_moments(moments)
