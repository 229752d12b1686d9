"""Logits before the enlargement that ends a network."""

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CoarseLogits:
    """Logits before the bilinear enlargement that ends a network, and how that one aligns its samples.

    Attributes:
      values: float `[*b, h, w, classes]`.
      alignment: "half_pixel" or "align_corners", as in `ops.resize`.
      grid: (height, width) that the alignment is meant for, where that is not the image's size, as in `ops.zoom`: the
        logits are its upper left, or go on with its last row and column. () for the image's size.
    """

    values: Any
    alignment: str = dataclasses.field(default="half_pixel", metadata={"static": True})
    grid: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})
