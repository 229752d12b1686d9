"""Mirror padding of any width, at the borders of overlapping tiles."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def mirrored_positions(length: int, before: int, after: int) -> np.ndarray:
    """Where each pixel of the padded axis comes from; the border pixel is not repeated.

    Example: 3 px with 2 before and 5 after: 2 1 | 0 1 2 | 1 0 1 2 1. One pixel is repeated.
    """
    period = max(2 * (length - 1), 1)
    position = np.mod(np.arange(-before, length + after), period)
    return np.minimum(position, period - position) if length > 1 else np.zeros_like(position)


def mirror_pad(x: jax.Array, pads: Sequence[Sequence[int]]) -> jax.Array:
    """Pads h and w by mirroring at the border pixels, as often as it takes (`numpy.pad`, mode "reflect").

    Args:
      x: `[*b, h, w, c]`.
      pads: ((top, bottom), (left, right)), not negative.

    Returns:
      `[*b, top + h + bottom, left + w + right, c]`.

    Raises:
      ValueError: no pixels, or negative padding.
    """
    if x.ndim < 3 or 0 in x.shape[-3:-1] or min(n for pair in pads for n in pair) < 0:
        raise ValueError(f"mirror_pad takes [*b, h, w, c] with pixels and padding >= 0, not {x.shape} and {pads}")
    for axis, (before, after) in zip((x.ndim - 3, x.ndim - 2), pads, strict=True):
        if before or after:
            x = jnp.take(x, mirrored_positions(x.shape[axis], before, after), axis=axis)
    return x
