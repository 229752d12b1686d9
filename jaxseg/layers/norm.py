"""Batch normalisation over the global batch, in float32."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.layers.stack import Maps, Moments

Arrays = tuple[jax.Array, ...]


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

    def _lines(
        self, pieces: Sequence[jax.Array], known: Sequence[Moments | None], train: bool
    ) -> tuple[Arrays, Arrays, tuple[Moments | None, ...]]:
        """Factor and shift of each piece's `x * factor + shift`, the normalised x, and its moments where known now."""
        c = sum(piece.shape[-1] for piece in pieces)
        scale = self.param("scale", nn.initializers.ones, (c,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (c,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,), jnp.float32)
        moments = tuple(known)
        cuts = _cuts(pieces)
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
        return tuple(jnp.split(factor, cuts)), tuple(jnp.split(shift, cuts)), moments

    def _keep_moments(self, mean: jax.Array, var: jax.Array, count: int) -> None:
        """Where the collection `batch_moments` is mutable: this batch's mean, biased variance and count in it."""
        if self.is_mutable_collection("batch_moments") and not self.is_initializing():
            for name, value in (("mean", mean), ("var", var), ("count", jnp.asarray(count, jnp.float32))):
                self.put_variable("batch_moments", name, value)


def _cuts(pieces: Sequence[jax.Array]) -> list[int]:
    """The channels at which the pieces after the first begin, beside each other."""
    return list(itertools.accumulate(piece.shape[-1] for piece in pieces[:-1]))


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


@functools.partial(jax.jit, static_argnames="dtype")
def _on_line(x: jax.Array, factor: jax.Array, shift: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return (x.astype(jnp.float32) * factor + shift).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _rectified_stack(
    pieces: Arrays, beside: jax.Array | None, factors: Arrays, shifts: Arrays, dtype: jnp.dtype
) -> jax.Array:
    """`relu(x * factor + shift)` of the pieces beside each other.

    Its gradient is the one that JAX derives, but for the sums that are a factor's and a shift's. On a GPU these run
    over the whole stack at once: a sum over 12 of 144 channels reads the others too, and leaves lanes without work
    (16x513x513x144 bfloat16, H200, the whole gradient: 6.3 instead of 11.0 ms). 16-bit values come there from `beside`,
    the pieces beside each other: the threads of a warp that read nine pieces part ways.
    """
    return _rectify(pieces, beside, factors, shifts, dtype)[0]


def _rectify(
    pieces: Arrays, beside: jax.Array | None, factors: Arrays, shifts: Arrays, dtype: jnp.dtype
) -> tuple[jax.Array, Arrays]:
    """The rectified stack, and where each piece was above zero."""
    lines = tuple(_on_line(*of, dtype) for of in zip(pieces, factors, shifts, strict=True))

    def by_pieces(lines: Arrays, *_: Any) -> jax.Array:
        # Rectified piece by piece: after the concatenation XLA's CPU would write both.
        return jnp.concatenate([nn.relu(line) for line in lines], axis=-1)

    def whole(_: Arrays, beside: jax.Array, factors: Arrays, shifts: Arrays) -> jax.Array:
        return nn.relu(_on_line(beside, jnp.concatenate(factors), jnp.concatenate(shifts), dtype))

    if beside is None:
        stack = by_pieces(lines)
    else:
        stack = lax.platform_dependent(lines, beside, factors, shifts, cuda=whole, default=by_pieces)
    return stack, tuple(line > 0 for line in lines)


def _rectify_forward(
    pieces: Arrays, beside: jax.Array | None, factors: Arrays, shifts: Arrays, dtype: jnp.dtype
) -> tuple[jax.Array, Any]:
    stack, above = _rectify(pieces, beside, factors, shifts, dtype)
    return stack, (pieces, beside, factors, shifts, above)


def _rectify_backward(
    dtype: jnp.dtype, residuals: Any, g: jax.Array
) -> tuple[Arrays, jax.Array | None, Arrays, Arrays]:
    of_whole = functools.partial(_gradients_of_whole, dtype=dtype)
    of_pieces, *others = lax.platform_dependent(*residuals, g, cuda=of_whole, default=_gradients_of_pieces)
    beside = residuals[1]
    return of_pieces, None if beside is None else jnp.zeros_like(beside), *others


def _gradients_of_pieces(
    pieces: Arrays, beside: jax.Array | None, factors: Arrays, shifts: Arrays, above: Arrays, g: jax.Array
) -> tuple[Arrays, Arrays, Arrays]:
    """Those of pieces, factors and shifts; sums for each piece apart."""
    of_pieces, of_factors, of_shifts = [], [], []
    for x, factor, positive, part in zip(pieces, factors, above, jnp.split(g, _cuts(pieces), axis=-1), strict=True):
        part = jnp.where(positive, part, jnp.zeros((), g.dtype)).astype(jnp.float32)
        axes = tuple(range(part.ndim - 1))
        of_pieces.append((part * factor).astype(x.dtype))
        of_factors.append(jnp.sum(x.astype(jnp.float32) * part, axis=axes))
        of_shifts.append(jnp.sum(part, axis=axes))
    return tuple(of_pieces), tuple(of_factors), tuple(of_shifts)


def _gradients_of_whole(
    pieces: Arrays,
    beside: jax.Array | None,
    factors: Arrays,
    shifts: Arrays,
    above: Arrays,
    g: jax.Array,
    *,
    dtype: jnp.dtype,
) -> tuple[Arrays, Arrays, Arrays]:
    """As `_gradients_of_pieces`, sums over the whole stack."""
    cuts = _cuts(pieces)
    if beside is None:
        beside = jnp.concatenate(pieces, axis=-1)
    line = _on_line(beside, jnp.concatenate(factors), jnp.concatenate(shifts), dtype)
    whole = jnp.where(line > 0, g, jnp.zeros((), g.dtype)).astype(jnp.float32)
    axes = tuple(range(g.ndim - 1))
    of_factor = jnp.sum(beside.astype(jnp.float32) * whole, axis=axes)
    parts = zip(pieces, factors, jnp.split(whole, cuts, axis=-1), strict=True)
    of_pieces = tuple((part * factor).astype(x.dtype) for x, factor, part in parts)
    return of_pieces, tuple(jnp.split(of_factor, cuts)), tuple(jnp.split(jnp.sum(whole, axis=axes), cuts))


_rectified_stack.defvjp(_rectify_forward, _rectify_backward)


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
        factors, shifts, _ = self._lines((x,), (None,), train)
        return _on_line(x, factors[0], shifts[0], self.dtype)


class StackNorm(_Norm):
    """ReLU of `BatchNorm` of a stack, of which earlier layers of a dense block have seen most.

    A channel's moments are the same in every layer that reads it, so that each is summed once in the whole network, and
    its gradient is made of one term a layer and one for the moments (DenseNet: up to 2 L terms otherwise).
    """

    @nn.compact
    def __call__(self, stack: Maps, train: bool) -> tuple[jax.Array, Maps]:
        """Normalises and rectifies the whole stack.

        Args:
          stack: floating pieces, with the moments that an earlier call returned.
          train: as `BatchNorm`.

        Returns:
          `[*b, c1 + c2 + ..]`, and the stack with all moments; with those it had where the running ones are used.
        """
        factors, shifts, moments = self._lines(stack.pieces, stack.moments, train)
        rectified = _rectified_stack(stack.pieces, stack.beside, factors, shifts, self.dtype)
        return rectified, stack.with_moments(moments)


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
