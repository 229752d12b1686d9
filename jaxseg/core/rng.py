"""Every random number is a function of the seed and of the step, never of how often something was called."""

import jax


def base_key(seed: int) -> jax.Array:
    """The key that a run's state carries."""
    return jax.random.key(seed)


def step_keys(key: jax.Array, step: jax.Array | int, names: tuple[str, ...]) -> dict[str, jax.Array]:
    """One key a name for this step, for Flax's `rngs=`: `fold_in(fold_in(key, step), position of the name)`."""
    folded = jax.random.fold_in(key, step)
    return {name: jax.random.fold_in(folded, i) for i, name in enumerate(names)}
