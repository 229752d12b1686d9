"""Images put together of their phases, the pixels that are a stride apart, or of windows with one value each."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Phases = Sequence[Sequence[jax.Array]]


def interlaced(phases: Phases) -> jax.Array:
    """`[b, s u, t v, c]` of s x t phases `[b, u, v, c]`: pixel (s q + a, t r + e) is pixel (q, r) of phase (a, e)."""
    return lax.platform_dependent(phases, tpu=interlaced_by_zeros, default=interlaced_by_stacks)


def interlaced_by_stacks(phases: Phases) -> jax.Array:
    """`interlaced`, as CPUs and GPUs have it."""
    b, rows, columns, c = phases[0][0].shape
    lines = [jnp.stack(line, axis=3).reshape(b, rows, -1, c) for line in phases]
    return jnp.stack(lines, axis=2).reshape(b, rows * len(phases), columns * len(phases[0]), c)


def interlaced_by_zeros(phases: Phases) -> jax.Array:
    """`interlaced` as a sum of the phases, zeros between their pixels: axes of two or three lie badly in a TPU's tiles.

    Million cycles that XLA expects of a v5e for the gradient of 2x2 pooling of 4x512x512x96, bfloat16: 29.4 by one
    comparison of an array with two axes of two, 11.8 by stacks, 4.5 here.
    """
    zero, (s, t) = jnp.zeros((), phases[0][0].dtype), (len(phases), len(phases[0]))
    spread = (
        lax.pad(phases[a][e], zero, ((0, 0, 0), (a, s - 1 - a, s - 1), (e, t - 1 - e, t - 1), (0, 0, 0)))
        for a in range(s)
        for e in range(t)
    )
    return functools.reduce(jnp.add, spread)


def placed_apart(values: jax.Array, indices: jax.Array, k: int) -> jax.Array:
    """Each value at its position in a window of its own, zeros elsewhere: one comparison a pixel.

    Args:
      values: `[b, h, w, c]`.
      indices: integers of the same shape: `k i + j` for row i and column j of the window.
      k: side of the windows, which touch and do not overlap.

    Returns:
      `[b, k h, k w, c]`.
    """
    b, rows, columns, c = values.shape
    zero = jnp.zeros((), values.dtype)

    def compared(values: jax.Array, indices: jax.Array) -> jax.Array:
        here = jnp.arange(k * k, dtype=indices.dtype).reshape(k, 1, k, 1)
        chosen = indices[:, :, None, :, None] == here
        return jnp.where(chosen, values[:, :, None, :, None], zero).reshape(b, rows * k, columns * k, c)

    def by_zeros(values: jax.Array, indices: jax.Array) -> jax.Array:
        phases = [[jnp.where(indices == a * k + e, values, zero) for e in range(k)] for a in range(k)]
        return interlaced_by_zeros(phases)

    return lax.platform_dependent(values, indices, tpu=by_zeros, default=compared)
