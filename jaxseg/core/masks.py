"""The one place that says which pixels count."""

import jax.numpy as jnp
from jax.typing import ArrayLike


def valid_mask(labels: ArrayLike, *, num_classes: int) -> jnp.ndarray:
    """True where a label is a class id: `0 <= label < num_classes`; void and padding are False.

    Args:
      labels: integers of any shape.
      num_classes: number of classes.

    Returns:
      bool array of the labels' shape.

    Raises:
      TypeError: if the labels are not integers.
    """
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, not {labels.dtype}")
    return (labels >= 0) & (labels < num_classes)
