"""Transposed convolution as a matrix product on the small image, and the fixed bilinear one as two.

Each output pixel of a transposed convolution with stride s sees `ceil(k / s)` input pixels a direction. So the s x s
outputs that belong to one input pixel are one row of a product: neighbouring input pixels side by side, times the
kernel rearranged. Nothing is multiplied with the zeros between the pixels, and the gradients are products as well.
Milliseconds on two cores, float32, forward / gradient of the input / of the kernel:

| input, kernel, stride, outputs | XLA's convolution | this file    |
|--------------------------------|-------------------|--------------|
| 1x17x17x21, 64, 32, 21         | 2668 / 220 / 886  | 52 / 72 / 58 |
| 1x70x70x21, 16, 8, 21          | 235 / 311 / 882   | 36 / 36 / 60 |
| 2x56x56x64, 4, 2, 64           | 28 / 13 / 669     | 12 / 11 / 25 |
| 2x56x56x128, 2, 2, 64          | 10 / 13 / 628     | 11 / 11 / 20 |
| 2x45x60x80, 3, 2, 80           | 16 / 31 / 541     | 29 / 15 / 76 |

On a TPU putting the s x s outputs beside each other costs more than the zeros, which its convolution knows, where the
kernel is wider than a stride of 2. Million cycles that XLA expects of a v5e, bfloat16, 4 images, forward / gradients:

| input, kernel, stride, outputs | XLA's convolution | this file   |
|--------------------------------|-------------------|-------------|
| 256x256x48, 3, 2, 48           | 8.4 / 17          | 23 / 26     |
| 64x64x192, 3, 2, 192           | 1.6 / 2.7         | 2.7 / 2.6   |
| 64x64x64, 4, 2, 64             | 0.44 / 1.1        | 0.92 / 1.4  |
| 128x128x128, 2, 2, 64          | 1.2 / 1.4         | 0.45 / 0.44 |
| 70x70x21, 16, 8, 21            | 8.4 / 13          | 5.6 / 6.7   |
| 17x17x21, 64, 32, 21           | 200 / 19          | 5.9 / 4.9   |
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseg.ops.pointwise import pointwise

Pair = tuple[int, int]


def conv_transpose(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int,
    padding: int = 0,
    output_padding: int = 0,
    size: Sequence[int] | None = None,
    groups: int = 1,
) -> jax.Array:
    """`y[s i + k - padding] += x[i] kernel[k]`: the gradient of a strided convolution, PyTorch's and Caffe's.

    Args:
      x: `[*b, h, w, c]` floating.
      kernel: `[kh, kw, n // groups, c]` of x's dtype. PyTorch's `[c, n // groups, kh, kw]` with the axes (2, 3, 1, 0).
      strides: s, both directions.
      padding: rows and columns taken off the upper left (FCN's crop offset), and, where `size` is None, off the lower
        right.
      output_padding: rows and columns more at the lower right.
      size: (height, width) of the result in place of what padding and output_padding give; beyond the last pixel that
        the kernel reaches there are zeros.
      groups: divides c and n. Depthwise: groups == c == n.

    Returns:
      `[*b, h', w', n]` of x's dtype, `h' = (h - 1) s - 2 padding + kh + output_padding`; sums are float32 inside.

    Raises:
      ValueError: shapes, groups or sizes do not fit; dtypes differ.
    """
    _check(x, kernel, groups)
    if strides < 1 or padding < 0 or output_padding < 0:
        raise ValueError(f"conv_transpose: stride {strides}, padding {padding} or {output_padding} is out of range")
    h, w = x.shape[-3:-1]
    kh, kw = kernel.shape[:2]
    if size is None:
        target = tuple((n - 1) * strides - 2 * padding + k + output_padding for n, k in ((h, kh), (w, kw)))
    else:
        target = (int(size[0]), int(size[1]))
    if min(target) < 1:
        raise ValueError(f"conv_transpose: {x.shape} with kernel {kernel.shape[:2]} would have the size {target}")
    images = x.reshape(-1, *x.shape[-3:])
    depthwise = groups > 1 and groups == x.shape[-1] and kernel.shape[2] == 1
    if depthwise:
        full = _depthwise(images, kernel, strides)
    elif groups == 1 and strides == 2 < max(kh, kw):
        full = _of_stride_2(images, kernel)
    else:
        full = _products(images, kernel, strides, groups)
    b, rows, columns, n = full.shape
    edges = ((-padding, target[0] + padding - rows), (-padding, target[1] + padding - columns))
    y = lax.pad(full, jnp.zeros((), full.dtype), ((0, 0, 0), (*edges[0], 0), (*edges[1], 0), (0, 0, 0)))
    return y.reshape(*x.shape[:-3], *target, n)


def _check(x: jax.Array, kernel: jax.Array, groups: int) -> None:
    if x.ndim < 3 or kernel.ndim != 4 or 0 in x.shape[-3:]:
        raise ValueError(
            f"conv_transpose takes [*b, h, w, c] with pixels and [kh, kw, n / groups, c], not {x.shape}, {kernel.shape}"
        )
    if groups < 1 or x.shape[-1] != kernel.shape[3] or x.shape[-1] % groups:
        raise ValueError(f"image has {x.shape[-1]} channels, kernel {kernel.shape}, groups {groups}: they do not fit")
    if x.dtype != kernel.dtype:
        raise ValueError(f"image is {x.dtype}, kernel is {kernel.dtype}: cast one of them")


def _taps(x: jax.Array, reach: Pair) -> list[jax.Array]:
    """The image as seen by each of `reach` rows and columns of the kernel, padded to `[b, h + a - 1, w + e - 1, c]`."""
    (a, e), (b, h, w, c) = reach, x.shape
    if reach == (1, 1):
        return [x]
    zero = jnp.zeros((), x.dtype)
    padded = lax.optimization_barrier(lax.pad(x, zero, ((0, 0, 0), (a - 1, a - 1, 0), (e - 1, e - 1, 0), (0, 0, 0))))
    starts = [(a - 1 - i, e - 1 - j) for i in range(a) for j in range(e)]
    return [lax.slice(padded, (0, y, z, 0), (b, y + h + a - 1, z + w + e - 1, c)) for y, z in starts]


def _phases(kernel: jax.Array, s: int) -> tuple[jax.Array, Pair]:
    """The kernel `[kh, kw, n, c]` as `[a e, s, s, n, c]` (zeros where k is no multiple of s), and (a, e)."""
    kh, kw, n, c = kernel.shape
    a, e = -(-kh // s), -(-kw // s)
    kernel = jnp.pad(kernel, ((0, a * s - kh), (0, e * s - kw), (0, 0), (0, 0)))
    split = kernel.reshape(a, s, e, s, n, c).transpose(0, 2, 1, 3, 4, 5)
    return split.reshape(a * e, s, s, n, c), (a, e)


def _interlace(y: jax.Array, s: int) -> jax.Array:
    """`[b, h, w, s, s, n] -> [b, h s, w s, n]`."""
    b, h, w = y.shape[:3]
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * s, w * s, -1)


def _products(x: jax.Array, kernel: jax.Array, s: int, groups: int) -> jax.Array:
    phases, reach = _phases(kernel, s)
    taps = _taps(x, reach)
    n, c = kernel.shape[2], x.shape[-1] // groups

    def product(g: int) -> jax.Array:
        mine = [tap[..., g * c : (g + 1) * c] for tap in taps] if groups > 1 else taps
        patches = jnp.concatenate(mine, axis=-1) if len(mine) > 1 else mine[0]
        matrix = phases[..., g * c : (g + 1) * c].transpose(0, 4, 1, 2, 3).reshape(len(taps) * c, s * s * n)
        return _interlace(pointwise(patches, matrix).reshape(*patches.shape[:3], s, s, n), s)

    parts = [product(g) for g in range(groups)]
    return parts[0] if groups == 1 else jnp.concatenate(parts, axis=-1)


@jax.custom_vjp
def _of_stride_2(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`_products` of stride 2 and one group, on TPUs as a convolution of the image with zeros between its pixels."""
    return lax.platform_dependent(x, kernel, tpu=_spread, default=functools.partial(_products, s=2, groups=1))


def _spread(x: jax.Array, kernel: jax.Array) -> jax.Array:
    kh, kw = kernel.shape[:2]
    turned = lax.rev(kernel, (0, 1)).swapaxes(2, 3)
    # As many zeros after as make the size even, which `_products` has it.
    edges = [(k - 1, k - 1 + k % 2) for k in (kh, kw)]
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, turned, (1, 1), edges, lhs_dilation=(2, 2), dimension_numbers=numbers)


def _stride_2_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _of_stride_2(x, kernel), (x, kernel)


def _stride_2_backward(residuals: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    def gradients(way: Callable[..., jax.Array], x: jax.Array, kernel: jax.Array, g: jax.Array) -> Any:
        return jax.vjp(way, x, kernel)[1](g)

    products = functools.partial(gradients, functools.partial(_products, s=2, groups=1))
    return lax.platform_dependent(*residuals, g, tpu=functools.partial(gradients, _spread), default=products)


_of_stride_2.defvjp(_stride_2_forward, _stride_2_backward)


def _depthwise(x: jax.Array, kernel: jax.Array, s: int) -> jax.Array:
    phases, reach = _phases(kernel, s)
    total = jnp.zeros((), jnp.float32)
    for tap, weights in zip(_taps(x, reach), phases, strict=True):
        image = tap.astype(jnp.float32)[:, :, :, None, None]
        total = total + image * weights[:, :, 0].astype(jnp.float32)
    return _interlace(total, s).astype(x.dtype)


def bilinear_weights(kernel_size: int) -> np.ndarray:
    """The hat `1 - |i - c| / f` with `f = (k + 1) // 2` and its centre c, float32 `[k]`.

    Example: 4 gives .25, .75, .75, .25; 3 gives .5, 1, .5.

    Reference: the initial values of FCN's deconvolutions (Long et al., arXiv 1411.4038, section 3.3).
    """
    factor = (kernel_size + 1) // 2
    centre = factor - 1 if kernel_size % 2 else factor - 0.5
    return (1 - np.abs(np.arange(kernel_size) - centre) / factor).astype(np.float32)


def bilinear_conv_transpose(
    x: jax.Array, *, kernel_size: int, strides: int, padding: int = 0, size: Sequence[int]
) -> jax.Array:
    """`conv_transpose`, each channel by itself, with the constant outer product of `bilinear_weights`.

    Args:
      x: `[*b, h, w, c]` floating.
      kernel_size, strides: of the transposed convolution; kernel 2 s and padding s / 2 is bilinear interpolation with
        half-pixel centres, except that the border is mixed with zeros.
      padding, size: as `conv_transpose`.

    Returns:
      `[*b, *size, c]` of x's dtype; computed in float32.
    """
    weights = bilinear_weights(kernel_size)

    def matrix(length: int, count: int) -> np.ndarray:
        tap = np.arange(count)[:, None] + padding - strides * np.arange(length)
        inside = (tap >= 0) & (tap < kernel_size)
        return np.where(inside, weights[np.clip(tap, 0, kernel_size - 1)], np.float32(0))

    rows, columns = (matrix(n, int(m)) for n, m in zip(x.shape[-3:-1], size, strict=True))
    y = jnp.einsum("oh,...hwc->...owc", rows, x.astype(jnp.float32), precision="highest")
    return jnp.einsum("pw,...owc->...opc", columns, y, precision="highest").astype(x.dtype)
