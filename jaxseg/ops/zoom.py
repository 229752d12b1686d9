"""Enlarging by a whole factor on the grid that strided layers leave: sample i of the map stands at pixel `factor i`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxseg.ops.resize import resize


def zoom(x: jax.Array, factor: int, size: Sequence[int]) -> jax.Array:
    """Bilinear enlargement from the origin: output pixel i is the map at `i / factor`, the last sample beyond it.

    Where `size` is `factor (n - 1) + 1` this is `align_corners`, and Caffe's Interp layer with that zoom factor; for
    other sizes it keeps the grid where `align_corners` would stretch it.

    Args:
      x: `[*b, h, w, c]` floating.
      factor: pixels from one sample to the next.
      size: (height, width) of the result.

    Returns:
      `[*b, height, width, c]` of x's dtype.

    Raises:
      ValueError: a factor or size below 1.

    Example: 0, 3 with factor 3 and 6 pixels: 0, 1, 2, 3, 3, 3.
    """
    if factor < 1 or min(size) < 1:
        raise ValueError(f"zoom takes a positive factor and size, not {factor} and {tuple(size)}")
    h, w = x.shape[-3:-1]
    y = resize(x, (factor * (h - 1) + 1, factor * (w - 1) + 1), alignment="align_corners")
    y = y[..., : size[0], : size[1], :]
    short = size[0] - y.shape[-3], size[1] - y.shape[-2]
    if not any(short):
        return y
    return jnp.pad(y, [(0, 0)] * (y.ndim - 3) + [(0, short[0]), (0, short[1]), (0, 0)], mode="edge")
