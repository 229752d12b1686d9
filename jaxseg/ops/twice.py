"""A 3x3 convolution of an image enlarged to twice its size by repetition, as decoders have them."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseg.ops.conv import conv
from jaxseg.ops.interlace import interlaced_by_zeros
from jaxseg.ops.nine_products import conv_by_nine
from jaxseg.ops.window import in_float32

# Output row 2 u + p reads rows 2 u + p + t - 1 of the enlarged image, t = 0, 1, 2: rows u + i - 1 of the small one.
TAPS = np.asarray([[[1, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]], np.float32)  # p, i, t

Operands = tuple[jax.Array, jax.Array, jax.Array | None]  # x, kernel, beside
Way = Callable[..., jax.Array]


def twice(x: jax.Array) -> jax.Array:
    """Each pixel of `[*b, h, w, c]` twice along h and w."""
    return lax.platform_dependent(x, tpu=_interlaced, default=_repeated)


def _interlaced(x: jax.Array) -> jax.Array:
    *batch, h, w, c = x.shape
    images = x.reshape(-1, h, w, c)
    return interlaced_by_zeros([[images] * 2] * 2).reshape(*batch, 2 * h, 2 * w, c)


def _repeated(x: jax.Array) -> jax.Array:
    *batch, h, w, c = x.shape
    return jnp.broadcast_to(x[..., :, None, :, None, :], (*batch, h, 2, w, 2, c)).reshape(*batch, 2 * h, 2 * w, c)


def conv_of_twice(x: jax.Array, kernel: jax.Array, beside: jax.Array | None = None) -> jax.Array:
    """`conv(twice(x), kernel)`, or `conv(concatenate([twice(x), beside]), kernel)` where there is a map beside it.

    On a CPU without the large image, by nine products where 36 are plain (`ops/nine_products.py`); the map beside it
    has a convolution of its own, and their sum is the result.

    On a TPU without it too: the image with zeros between its pixels, which the matrix unit's convolution knows, and a
    kernel of 4x4 taps that are sums of neighbouring taps; what is beside it as on a CPU. A repetition lies badly in a
    TPU's tiles. Million cycles that XLA expects of a v5e, bfloat16, 4 images, values and both gradients: 256 px, 32 ->
    16, 21.2 and 34.1 as it is written, 8.7 and 16.5 repeated one way after the other, 7.4 and 15.1 by products with
    zeros and ones, 10.0 and 19.9 by four outputs at a pixel (below), 2.8 and 6.8 here; 128 px, 64 and 64 beside -> 32,
    7.9 and 11.1, 4.3 and 6.8, 4.2 and 6.8, 5.8 and 4.1, 3.3 and 4.4. Where rows lie on several devices
    (`config.mesh.space`) its gradients gather them.

    Of 16-bit numbers on NVIDIA GPUs, with nothing beside it, without the large image too: four outputs share their
    3 x 3 pixels of the small image, and are the channels of one convolution of it, whose kernel holds sums of the taps
    that fall on the same pixel (sub-pixel convolution, Shi et al., arXiv 1609.05158, section 3). The sums are rounded
    to x's dtype once. 16x256x256, 32 -> 16, bfloat16, H200, values: 0.21 instead of 0.54 ms.

    Args:
      x: `[*b, h, w, c]` floating.
      kernel: `[3, 3, c + d, n]` of x's dtype; d is 0 without a map beside it.
      beside: `[*b, 2 h, 2 w, d]` of x's dtype.

    Returns:
      `[*b, 2 h, 2 w, n]` of x's dtype.

    Raises:
      ValueError: a kernel that is not 3x3; a map beside it that has another size, or that the kernel does not fit.
    """
    *batch, h, w, c = x.shape
    large = (*batch, 2 * h, 2 * w)
    if kernel.shape[:2] != (3, 3):
        raise ValueError(f"conv_of_twice takes a kernel of 3x3 taps, not {kernel.shape[:2]}")
    if beside is not None and (beside.shape[:-1] != large or beside.dtype != x.dtype):
        raise ValueError(f"beside {x.dtype}{x.shape} enlarged to twice lies {beside.dtype}{beside.shape}, not {large}")
    if kernel.shape[2] != c + (0 if beside is None else beside.shape[-1]) or kernel.dtype != x.dtype:
        raise ValueError(f"kernel {kernel.dtype}{kernel.shape} does not fit {x.dtype}{x.shape} and what is beside it")
    if beside is not None:
        beside = beside.reshape(-1, 2 * h, 2 * w, beside.shape[-1])
    return _conv_of_twice(x.reshape(-1, h, w, c), kernel, beside).reshape(*large, kernel.shape[-1])


@jax.custom_vjp
def _conv_of_twice(x: jax.Array, kernel: jax.Array, beside: jax.Array | None) -> jax.Array:
    return lax.platform_dependent(x, kernel, beside, **_ways(x, beside))


def _ways(x: jax.Array, beside: jax.Array | None) -> dict[str, Way]:
    """By platform."""
    if x.dtype.itemsize > 2:
        return {"cpu": _by_nine, "tpu": _spread, "default": _plain}
    return {"tpu": _spread, "default": _plain} | ({"cuda": _by_four} if beside is None else {})


def _plain(x: jax.Array, kernel: jax.Array, beside: jax.Array | None) -> jax.Array:
    large = twice(x)
    return conv(large if beside is None else jnp.concatenate([large, beside], axis=-1), kernel)


def _by_nine(x: jax.Array, kernel: jax.Array, beside: jax.Array | None) -> jax.Array:
    c = x.shape[-1]
    y = conv_by_nine(x, kernel[:, :, :c])
    return y if beside is None else y + conv(beside, kernel[:, :, c:])


def _spread(x: jax.Array, kernel: jax.Array, beside: jax.Array | None) -> jax.Array:
    c = x.shape[-1]
    wide = in_float32(kernel[:, :, :c])
    for axis in (0, 1):  # tap i of the spread image: those of i - 1 and i of the repeated one
        first, last = ([(0, 0)] * axis + [edge] + [(0, 0)] * (3 - axis) for edge in ((0, 1), (1, 0)))
        wide = jnp.pad(wide, first) + jnp.pad(wide, last)
    y = lax.conv_general_dilated(
        x,
        wide.astype(kernel.dtype),
        (1, 1),
        ((2, 2), (2, 2)),
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y if beside is None else y + conv(beside, kernel[:, :, c:])


def _kernel_of_four(kernel: jax.Array) -> jax.Array:
    """`[3, 3, c, 4 n]`: the kernels of the four outputs at a pixel, rows first."""
    four = jnp.einsum("pit,qjs,tscn->ijcpqn", TAPS, TAPS, kernel.astype(jnp.float32), precision="highest")
    return four.reshape(3, 3, kernel.shape[2], -1).astype(kernel.dtype)


def _by_four(x: jax.Array, kernel: jax.Array, beside: None) -> jax.Array:
    del beside
    b, h, w, _ = x.shape
    y = conv(x, _kernel_of_four(kernel)).reshape(b, h, w, 2, 2, -1)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, -1)


def _forward(x: jax.Array, kernel: jax.Array, beside: jax.Array | None) -> tuple[jax.Array, Operands]:
    return _conv_of_twice(x, kernel, beside), (x, kernel, beside)


def _backward(operands: Operands, g: jax.Array) -> Operands:
    def gradients(way: Way, x: jax.Array, kernel: jax.Array, beside: jax.Array | None, g: jax.Array) -> Operands:
        of_x, of_kernel, of_beside = jax.vjp(way, x, kernel, beside)[1](g)
        return of_x, of_kernel, of_beside

    ways = _ways(operands[0], operands[2])
    return lax.platform_dependent(
        *operands, g, **{platform: functools.partial(gradients, way) for platform, way in ways.items()}
    )


_conv_of_twice.defvjp(_forward, _backward)
