"""What NVIDIA GPUs get for a dense convolution where that is not XLA's own: chosen by shapes and types alone."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxseg.ops.aligned import aligned_conv, aligned_input_gradient, aligned_kernel_gradient, can_align
from jaxseg.ops.phases import atrous_kernel_gradient, can_use_phases, conv_by_phases, input_gradient_by_phases
from jaxseg.ops.pixel_blocks import can_use_blocks, conv_of_blocks, kernel_gradient_of_blocks
from jaxseg.ops.stock_conv import Pads, Pair

Way = dict[str, Callable[..., jax.Array]]


class Ways(NamedTuple):
    """What `jax.lax.platform_dependent` takes beside its default: nothing, or `cuda`.

    Attributes:
      values: of (x, kernel).
      image: its gradient, of (x, kernel, g).
      kernel: its gradient, of (x, kernel, g).
    """

    values: Way
    image: Way
    kernel: Way


def ways_on_gpus(
    x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, dilation: Pair, precision: Any = None
) -> Ways:
    """The three parts of `stock_conv` of one group."""

    def way(function: Callable[..., jax.Array], **options: Any) -> Way:
        return {"cuda": functools.partial(function, precision=precision, **options)}

    values: Way = {}
    of_image: Way = {}
    of_kernel: Way = {}
    if can_align(x, kernel):
        window: dict[str, Any] = {"strides": strides, "pads": pads, "dilation": dilation}
        values, of_image = way(aligned_conv, **window), way(aligned_input_gradient, **window)
        of_kernel = way(aligned_kernel_gradient, **window)
    if can_use_blocks(x, strides, dilation):
        values = way(conv_of_blocks, strides=strides, pads=pads)
        of_kernel = way(kernel_gradient_of_blocks, strides=strides, pads=pads)
    if strides == (1, 1) and max(dilation) > 1:
        of_kernel = way(atrous_kernel_gradient, pads=pads, dilation=dilation)
        if can_use_phases(x, kernel, pads, dilation):
            values = way(conv_by_phases, dilation=dilation)
            of_image = way(input_gradient_by_phases, dilation=dilation)
    return Ways(values, of_image, of_kernel)
