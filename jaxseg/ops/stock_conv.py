"""XLA's own convolution of channels-last images: what every other lowering is chosen against."""

from typing import Any

import jax
from jax import lax

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]


def stock_conv(
    x: jax.Array,
    kernel: jax.Array,
    strides: Pair = (1, 1),
    pads: Pads = ((0, 0), (0, 0)),
    dilation: Pair = (1, 1),
    groups: int = 1,
    precision: Any = None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` of `[b, h, w, c]` with `[kh, kw, c // groups, n]`; arguments as `conv`."""
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        pads,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=precision,
    )
