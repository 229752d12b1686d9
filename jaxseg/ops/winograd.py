"""Three-row convolutions at stride 1 with half the products: Winograd's F(4, 3) along the rows, for a CPU.

Four rows of the output come from six rows of the image by six products where twelve are plain: `y = A ((G k) * (B x))`
(Toom and Cook; for networks Lavin and Gray, CVPR 2016). Each of the six is a convolution of one kernel row, made as a
product of a matrix with the columns of all its taps: values, image's gradient and kernel gradient are one batched
product each, which threads share at the rate of a 1x1 convolution. Rows of each phase of the rate have tiles of their
own.

Two cores, float32, 3x3, milliseconds of wall time alone, best of seven or more: values / image's gradient / kernel
gradient, before this file (XLA's convolution, blocks of rows, taps) and by it:

| input, channels, rate    | before             | half the products  |
|--------------------------|--------------------|--------------------|
| 2x64x64, 64 -> 64        | 5.8 / 6.4 / 17     | 3.5 / 4.6 / 6.4    |
| 4x32x32, 128 -> 128      | 10 / 10 / 30       | 6.2 / 7.6 / 9.4    |
| 4x8x8, 512 -> 512        | 9.6 / 16 / 21      | 7.3 / 8.2 / 7.6    |
| 2x32x32, 512 -> 512, 4   | 64 / 70 / 125      | 40 / 35 / 38       |
| 4x128x128, 128 -> 32     | 36 / 37 / 107      | 31 / 32 / 87       |
| 1x129x129, 304 -> 256    | 185 / 174 / 607    | 105 / 123 / 115    |
| 2x32x32, 512 -> 256, 6   | 25 / 25 / 110      | 39 / 29 / 38       |
| 4x128x128, 32 -> 64      | 19 / 22 / 224      | 20 / 24 / 29       |
| 4x256x256, 32 -> 16      | 20 / 23 / 42       | 26 / 35 / 76       |

Errors against float64, root mean square and largest, over the standard deviation of the values, 2x32x32, 256 -> 256:
XLA's convolution 7.6e-7 and 8.6e-6; here, at the points 0, +-2/3, +-3/2 and infinity, 1.1e-6 and 1.1e-5; at the usual
0, +-1, +-2 and infinity 1.6e-6 and 2.4e-5.

Tried: tiles in both directions, 4 x 4 or 4 x 2 outputs (values 0 to 25 % faster at 512 and 256 channels, gradients
up to twice as slow, errors twice as large); the six as six convolutions (as fast, six times the operations); taps
beside each other before the product of values, or one product a tap (up to 1.5 times the time on large maps).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.ops.apart import apart
from jaxseg.ops.stock_conv import Pads, Pair
from jaxseg.ops.window import in_float32

ROWS, TAPS = 4, 3  # of the output in a tile, of the kernel
POINTS = ROWS + TAPS - 1
SMALL, LARGE = 2 / 3, 3 / 2  # the points beside 0 and infinity, with both signs; their product is 1
SMALL2, LARGE2 = SMALL**2, LARGE**2
# Numbers of the matrices that are made at a time: larger maps are worked off in blocks of tile rows.
BLOCK = 2**24


def tiles(rows: int, rate: int) -> int:
    """Tile rows for `rows` rows of the output: each holds four rows of every phase of the rate."""
    return -(-rows // (ROWS * rate))


def winograd_forward(x: jax.Array, kernel: jax.Array, *, pads: Pads, dilation: Pair, precision: Any) -> jax.Array:
    """`stock_conv` at stride 1, summed in float32 at least.

    Args:
      x: `[b, h, w, c]`.
      kernel: `[3, kw, c, n]`.
      pads: (before, after) for rows and for columns, none negative.
      dilation: rows, columns.
      precision: as `jax.lax.dot_general`.
    """
    (kw, c, n), (rate, step) = kernel.shape[1:], dilation
    rows, columns = x.shape[1] + sum(pads[0]) - (TAPS - 1) * rate, x.shape[2] + sum(pads[1])
    width, number = columns - (kw - 1) * step, tiles(rows, rate)
    weights = _kernel_to_points(in_float32(kernel)).swapaxes(1, 2).reshape(POINTS, c, kw * n)
    image = _pad(x, pads, (number + 1) * ROWS * rate)

    def part(start: jax.Array | int, length: int) -> jax.Array:
        points = _image_to_points(in_float32(_rows(image, start, length + ROWS * rate)), rate)
        products = _product(points, weights, 1, precision)
        taps = (products[..., j * step : j * step + width, j * n : (j + 1) * n] for j in range(kw))
        return _points_to_rows(functools.reduce(jnp.add, taps)).astype(x.dtype)

    size = _block(number, x.shape[0] * rate * columns * POINTS * (c + kw * n))
    return _by_blocks(part, number, size, rate, 0)[:, :rows]


def winograd_input_gradient(
    x: jax.Array, kernel: jax.Array, g: jax.Array, *, pads: Pads, dilation: Pair, precision: Any
) -> jax.Array:
    """The gradient of x `[b, h, w, c]` for the cotangent g `[b, h', w', n]`; arguments as `winograd_forward`."""
    (kw, c, n), (rate, step), (b, h, w, _) = kernel.shape[1:], dilation, x.shape
    number, columns, width = tiles(g.shape[1], rate), w + sum(pads[1]), g.shape[2]
    weights = _kernel_to_points(in_float32(kernel)).reshape(POINTS, kw * c, n)
    cotangent = _pad(g, ((0, 0), (0, 0)), number * ROWS * rate)

    def part(start: jax.Array | int, length: int) -> jax.Array:
        points = _cotangent_to_points(in_float32(_rows(cotangent, start, length)), rate)
        products = _product(points, weights, 2, precision)
        taps = (
            _between(products[..., j * c : (j + 1) * c], j * step, columns - width - j * step, 4) for j in range(kw)
        )
        return _points_to_image(functools.reduce(jnp.add, taps))

    size = _block(number, b * rate * columns * POINTS * (n + kw * c))
    padded = _by_blocks(part, number, size, rate, ROWS * rate)
    (top, _), (left, _) = pads
    return padded[:, top : top + h, left : left + w].astype(x.dtype)


def winograd_kernel_gradient(
    x: jax.Array, kernel: jax.Array, g: jax.Array, *, pads: Pads, dilation: Pair, precision: Any
) -> jax.Array:
    """The gradient of the kernel `[3, kw, c, n]`; arguments as `winograd_input_gradient`."""
    (kw, c, n), (rate, step), width = kernel.shape[1:], dilation, g.shape[2]
    number = tiles(g.shape[1], rate)
    image, cotangent = _pad(x, pads, (number + 1) * ROWS * rate), _pad(g, ((0, 0), (0, 0)), number * ROWS * rate)
    size = _block(number, x.shape[0] * rate * width * POINTS * (kw * c + n))
    length = size * ROWS * rate

    def part(start: jax.Array | int) -> jax.Array:
        points = _image_to_points(in_float32(_rows(image, start, length + ROWS * rate)), rate)
        # XLA's CPU transposes the left side of this product: here one tap's numbers, once, and not all of them.
        points = apart(jnp.moveaxis(points, 5, 1), kernel[0, 0, 0, 0])
        taps = jnp.concatenate([points[..., j * step : j * step + width] for j in range(kw)], axis=1)
        others = _cotangent_to_points(in_float32(_rows(cotangent, start, length)), rate)
        return lax.dot_general(taps, others, (((2, 3, 4, 5), (1, 2, 3, 4)), ((0,), (0,))), precision=precision)

    if size == number:
        gradient = part(0)
    else:
        # One sum and not one for each image, which would be added over devices once instead of in each block: they took
        # 2.5 GB beside DeepLab v2's other 19.9 GB of temporary values.
        one = jax.eval_shape(part, 0)
        zero = jnp.zeros(one.shape, one.dtype)
        gradient = lax.fori_loop(0, number // size, lambda i, total: total + part(i * length), zero)
    spread = gradient.reshape(POINTS, kw, c, n)
    return _points_to_kernel(spread).astype(kernel.dtype)


def _image_to_points(rows: jax.Array, rate: int) -> jax.Array:
    """`[b, (t + 1) 4 rate, w, c] -> [6, b, t, rate, w, c]`: B, of the six rows of each tile."""
    b, height, w, c = rows.shape
    number = height // (ROWS * rate) - 1
    tiled = rows.reshape(b, number + 1, ROWS, rate, w, c)
    d = [tiled[:, i // ROWS : i // ROWS + number, i % ROWS] for i in range(POINTS)]
    evens = d[4] - LARGE2 * d[2], d[4] - SMALL2 * d[2]
    odds = SMALL * (d[3] - LARGE2 * d[1]), LARGE * (d[3] - SMALL2 * d[1])
    zero, infinity = d[0] + d[4] - (SMALL2 + LARGE2) * d[2], d[1] + d[5] - (SMALL2 + LARGE2) * d[3]
    small, large = ((even + odd, even - odd) for even, odd in zip(evens, odds, strict=True))
    return jnp.stack([zero, *small, *large, infinity])


def _points_to_image(points: jax.Array) -> jax.Array:
    """The transpose of `_image_to_points`."""
    _, b, number, rate, w, c = points.shape
    zero, p, q, r, s, infinity = points
    (small, small_odd), (large, large_odd) = (p + q, SMALL * (p - q)), (r + s, LARGE * (r - s))
    both = SMALL2 + LARGE2
    tile = [
        zero,
        infinity - LARGE2 * small_odd - SMALL2 * large_odd,
        -both * zero - LARGE2 * small - SMALL2 * large,
        small_odd + large_odd - both * infinity,
    ]
    edges = ((0, 0, 0), (0, 1, 0), *((0, 0, 0),) * 4)
    own = lax.pad(jnp.stack(tile, axis=2), jnp.zeros((), points.dtype), edges)
    # The last two rows of a tile are the first two of the next.
    edges = ((0, 0, 0), (1, 0, 0), (0, ROWS - 2, 0), *((0, 0, 0),) * 3)
    next_ones = lax.pad(jnp.stack([zero + small + large, infinity], axis=2), jnp.zeros((), points.dtype), edges)
    return (own + next_ones).reshape(b, (number + 1) * ROWS * rate, w, c)


# For each of the points above 0: the factors of the kernel's rows.
FACTORS = tuple(
    tuple(point**i / (2 * point**2 * (point**2 - other**2)) for i in range(TAPS))
    for point, other in ((SMALL, LARGE), (LARGE, SMALL))
)


def _kernel_to_points(kernel: jax.Array) -> jax.Array:
    """`[3, kw, c, n] -> [6, kw, c, n]`: G, the kernel's rows as a polynomial at the six points."""
    values = []
    for first, second, third in FACTORS:
        even, odd = first * kernel[0] + third * kernel[2], second * kernel[1]
        values += [even + odd, even - odd]
    return jnp.stack([kernel[0], *values, kernel[2]])


def _points_to_kernel(points: jax.Array) -> jax.Array:
    """The transpose of `_kernel_to_points`."""
    zero, p, q, r, s, infinity = points
    (a, b, c), (d, e, f) = FACTORS
    small, large = p + q, r + s
    return jnp.stack([zero + a * small + d * large, b * (p - q) + e * (r - s), infinity + c * small + f * large])


def _points_to_rows(points: jax.Array) -> jax.Array:
    """`[6, b, t, rate, w, n] -> [b, t 4 rate, w, n]`: A, the four rows of each tile."""
    _, b, number, rate, w, n = points.shape
    zero, p, q, r, s, infinity = points
    small, large = (p + q, p - q), (r + s, r - s)
    rows = [
        zero + small[0] + large[0],
        SMALL * small[1] + LARGE * large[1],
        SMALL2 * small[0] + LARGE2 * large[0],
        SMALL**3 * small[1] + LARGE**3 * large[1] + infinity,
    ]
    return jnp.stack(rows, axis=2).reshape(b, number * ROWS * rate, w, n)


def _cotangent_to_points(rows: jax.Array, rate: int) -> jax.Array:
    """The transpose of `_points_to_rows`."""
    b, height, w, n = rows.shape
    tiled = rows.reshape(b, height // (ROWS * rate), ROWS, rate, w, n)
    g = [tiled[:, :, i] for i in range(ROWS)]
    values = []
    for point in (SMALL, LARGE):
        even, odd = g[0] + point**2 * g[2], point * g[1] + point**3 * g[3]
        values += [even + odd, even - odd]
    return jnp.stack([g[0], *values, g[3]])


def _product(points: jax.Array, weights: jax.Array, axis: int, precision: Any) -> jax.Array:
    """`[6, b, t, rate, w, k]` and `[6, k, m]` (axis 1) or `[6, m, k]` (axis 2): `[6, b, t, rate, w, m]`."""
    return lax.dot_general(points, weights, (((5,), (axis,)), ((0,), (0,))), precision=precision)


def _pad(x: jax.Array, pads: Pads, height: int) -> jax.Array:
    """With zeros as the convolution has them, and below to `height` rows."""
    top = pads[0][0]
    return lax.pad(
        x, jnp.zeros((), x.dtype), ((0, 0, 0), (top, height - top - x.shape[1], 0), (*pads[1], 0), (0, 0, 0))
    )


def _between(x: jax.Array, before: int, after: int, axis: int) -> jax.Array:
    edges = [(before, after, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)]
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


def _rows(x: jax.Array, start: jax.Array | int, length: int) -> jax.Array:
    return x if length == x.shape[1] else lax.dynamic_slice_in_dim(x, start, length, axis=1)


def _block(number: int, numbers: int) -> int:
    """Tile rows to work off at a time, a divisor of their number, where each has so many numbers in its matrices."""
    fit = (size for size in range(2, number + 1) if number % size == 0 and size * numbers <= BLOCK)
    return max(fit, default=1)


def _by_blocks(
    part: Callable[[jax.Array | int, int], jax.Array], number: int, size: int, rate: int, extra: int
) -> jax.Array:
    """The sum of the rows that `part(start, length)` gives, `length + extra` from `start` on."""
    length = size * ROWS * rate
    if size == number:
        return part(0, length)

    def body(block: jax.Array, total: jax.Array) -> jax.Array:
        start = block * length
        before = lax.dynamic_slice_in_dim(total, start, length + extra, axis=1)
        return lax.dynamic_update_slice_in_dim(total, before + part(start, length), start, axis=1)

    one = jax.eval_shape(lambda: part(0, length))
    total = jnp.zeros((one.shape[0], number * ROWS * rate + extra, *one.shape[2:]), one.dtype)
    return lax.fori_loop(0, number // size, body, total)
