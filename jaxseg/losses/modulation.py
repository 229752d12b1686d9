"""Factors that focal and poly losses put on a cross-entropy, as functions of that cross-entropy."""

import jax
import jax.numpy as jnp


def modulated(cross_entropy: jax.Array, gamma: float) -> jax.Array:
    """`(1 - p)^gamma * (-log p)` of `-log p`, with the right gradient for any gamma >= 0, also at p = 1.

    All that a focal loss needs of the logits is `l = -log p`, because `1 - p = -expm1(-l)` is as exact as l is. The
    power's derivative is infinite at p = 1 where gamma < 1, but its product with l tends to 0.

    Args:
      cross_entropy: `-log p`, not negative; NaN stays NaN.
      gamma: in [0, inf).
    """
    if gamma == 0:
        return cross_entropy
    inside, safe = _away_from_zero(cross_entropy)
    return jnp.where(inside, _power(-jnp.expm1(-safe), gamma) * safe, jnp.zeros_like(safe))


def complement_power(cross_entropy: jax.Array, exponent: float) -> jax.Array:
    """`(1 - p)^exponent` of `-log p`, for an exponent of at least 1."""
    return _power(-jnp.expm1(-cross_entropy), exponent)


def checked_gamma(gamma: float) -> float:
    """The focusing parameter.

    Raises:
      ValueError: it is negative or not finite.
    """
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"gamma = {gamma} is not a finite number of at least 0")
    return gamma


def _away_from_zero(cross_entropy: jax.Array) -> tuple[jax.Array, jax.Array]:
    zero = cross_entropy <= jnp.finfo(cross_entropy.dtype).tiny  # False for NaN, which has to stay
    return ~zero, jnp.where(zero, jnp.ones_like(cross_entropy), cross_entropy)


def _power(base: jax.Array, exponent: float) -> jax.Array:
    # A whole exponent becomes multiplications.
    return base ** (int(exponent) if float(exponent).is_integer() else exponent)
