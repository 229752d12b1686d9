"""Compares a network's outputs with those of the original, layer by layer."""

from collections.abc import Mapping

import numpy as np
from jax.typing import ArrayLike

from jaxseg.core.errors import JaxsegError


def largest_differences(ours: Mapping[str, ArrayLike], theirs: Mapping[str, ArrayLike]) -> dict[str, float]:
    """`max |ours - theirs|` of each output that both have, in the order of `theirs`: the first large one is to blame.

    Args:
      ours: name -> array.
      theirs: name -> array of the same shape, channels last.

    Returns:
      name -> largest absolute difference, computed in float64; nan where a value is not a number.

    Raises:
      JaxsegError: no common name, or shapes that differ.
    """
    common = [name for name in theirs if name in ours]
    if not common:
        raise JaxsegError(f"Nothing to compare: {sorted(ours)} and {sorted(theirs)} have no name in common.")
    differences = {}
    for name in common:
        a, b = np.asarray(ours[name], np.float64), np.asarray(theirs[name], np.float64)
        if a.shape != b.shape:
            raise JaxsegError(f"{name}: our shape is {a.shape}, theirs is {b.shape}.")
        differences[name] = float(np.max(np.abs(a - b), initial=0.0))
    return differences
