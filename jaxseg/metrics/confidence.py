"""The largest probability of a pixel as an integer, so that its sums are exact."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

BITS = 24  # multiples of 2^-24, which float32 values of 0.5 and more are anyway


def fixed_point_confidence(probabilities: jax.Array) -> jax.Array:
    """int32 `[*b]`, 0..2^24: the largest of the probabilities `[*b, c]` in units of 2^-24; 0 where one is NaN."""
    largest = jnp.nan_to_num(jnp.max(probabilities, axis=-1).astype(jnp.float32), nan=0.0)
    return jnp.round(jnp.clip(largest, 0.0, 1.0) * (1 << BITS)).astype(jnp.int32)


def checked_probabilities(
    labels: ArrayLike, probabilities: ArrayLike, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Labels and mask `[b, h, w]` and probabilities `[b, h, w, c]` as arrays; None is a mask that is True.

    Values can be looked at outside of `jit` only.

    Raises:
      TypeError: labels are not integers, `where` is not bool, or probabilities are not floats.
      ValueError: shapes that do not fit, or values far from 0..1, such as logits.
    """
    labels, probabilities = jnp.asarray(labels), jnp.asarray(probabilities)
    where = jnp.ones(labels.shape, bool) if where is None else jnp.asarray(where)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, not {labels.dtype}")
    if not jnp.issubdtype(probabilities.dtype, jnp.floating):
        raise TypeError(f"probabilities must be floats, not {probabilities.dtype}")
    if where.dtype != np.bool_:
        raise TypeError(f"where must be bool, not {where.dtype}")
    if labels.ndim < 2 or probabilities.shape[:-1] != labels.shape or where.shape != labels.shape:
        raise ValueError(
            f"labels {labels.shape}, where {where.shape}, probabilities {probabilities.shape}: "
            "give [b, h, w], [b, h, w] and [b, h, w, c]"
        )
    if not any(isinstance(x, jax.core.Tracer) for x in (probabilities, where)):
        _refuse_logits(probabilities, where)
    return labels, probabilities, where


def _refuse_logits(probabilities: Any, where: Any) -> None:
    inside = np.asarray(probabilities, np.float32)[np.asarray(where)]
    if inside.size and (np.nanmin(inside, initial=0.0) < -1e-3 or np.nanmax(inside, initial=0.0) > 1 + 1e-3):
        raise ValueError("probabilities lie outside 0..1; logits were given? Take their softmax first.")
