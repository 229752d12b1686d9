"""The class of the largest logit, quick on CPUs as well."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

_FEW = 24  # up to so many classes XLA's own reduction is unrolled, 0.4 ns a logit; beyond, it takes 2 to 4 ns
_BLOCK = 1 << 20  # logits that stay in the cache between the two passes over them


def class_argmax(logits: ArrayLike) -> jax.Array:
    """`argmax_c logits[..., c]`: the first of equal maxima, and the first NaN where there is one, as `jnp.argmax`.

    On CPUs with more than 24 classes, blocks of pixels are read twice, for the maximum and for the first place where it
    stands: 0.22 s instead of 0.69 s for 8x512x512x150 float32 on two cores.

    Args:
      logits: numbers `[*b, c]`.

    Returns:
      int32 `[*b]`; (1, 3, 3) gives 1.

    Raises:
      ValueError: there is no class, or there are 2^24 or more.
    """
    logits = jnp.asarray(logits)
    if logits.ndim < 1 or not 1 <= logits.shape[-1] < 1 << 24:
        raise ValueError(f"logits {logits.shape} are not [*b, c] with 1 <= c < 2^24")
    if logits.shape[-1] <= _FEW or logits.size == 0:
        return _by_reduction(logits)
    return jax.lax.platform_dependent(logits, cpu=_by_blocks, default=_by_reduction)


def _by_reduction(logits: jax.Array) -> jax.Array:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def _by_blocks(logits: jax.Array) -> jax.Array:
    classes = logits.shape[-1]
    # The first axis stays one: the rows of a batch lie on different devices.
    rows = logits.shape[0] if logits.ndim > 2 else 1
    pixels = math.prod(logits.shape[:-1]) // rows
    length = min(pixels, max(1, _BLOCK // (classes * rows)))
    flat = logits.reshape(rows, pixels, classes)

    def write(i: jax.Array, found: jax.Array) -> jax.Array:
        start = jnp.minimum(i * length, pixels - length)  # the last block overlaps the one before
        block = jax.lax.dynamic_slice_in_dim(flat, start, length, axis=1)
        return jax.lax.dynamic_update_slice_in_dim(found, _first_maximum(block), start, axis=1)

    found = jax.lax.fori_loop(0, -(-pixels // length), write, jnp.zeros((rows, pixels), jnp.int32))
    return found.reshape(logits.shape[:-1])


def _first_maximum(logits: jax.Array) -> jax.Array:
    classes = logits.shape[-1]
    # Without the barrier XLA computes the maximum anew for every class.
    largest = jax.lax.optimization_barrier(jnp.max(logits, axis=-1, keepdims=True))
    # Minima of float32 are vectorised, those of integers are not.
    place = jax.lax.broadcasted_iota(jnp.float32, logits.shape, logits.ndim - 1)
    # XLA's CPU does not promise that a maximum passes NaN on: NaN come before everything else by places below 0.
    other = jnp.where(logits == largest, place, jnp.float32(classes))
    first = jnp.min(jnp.where(logits != logits, place - classes, other), axis=-1).astype(jnp.int32)
    return jnp.where(first < 0, first + classes, first)
