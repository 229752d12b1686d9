"""Dense convolutions that XLA's CPU does badly: large rates on small maps, and the kernel gradient of thin ones.

A tap at rate 12 on a 32 px map reads padding for 12 of its 32 rows. XLA's CPU convolution multiplies those zeros, and
its inner loop is slower with a dilated kernel. Here each tap is one matrix product over the rectangle of outputs whose
pixel lies in the image, added to that part of the result; 1 - `useful_share` of the products are never made.
The products run on the same routine as a 1x1 convolution, near the machine's matrix rate.

CPU milliseconds of one core (512 -> 512: of two), float32, kernel 3x3, forward / input gradient / kernel gradient
(PyTorch 2.13: oneDNN):

| input, channels, rate     | share | XLA's convolution | this file       | PyTorch         |
|---------------------------|-------|-------------------|-----------------|-----------------|
| 2x32x32, 2048 -> 256, 24  | 0.25  | 498 / 257 / 518   | 71 / 56 / 72    | 56 / 58 / 363   |
| 2x32x32, 2048 -> 256, 12  | 0.56  | 361 / 239 / 387   | 175 / 158 / 155 | 126 / 121 / 184 |
| 2x32x32, 512 -> 256, 6    | 0.77  | 52 / 54 / 58      | 39 / 42 / 70    | 36 / 37 / 48    |
| 2x33x33, 320 -> 256, 6    | 0.77  | 34 / 36 / 38      | 29 / 29 / 36    | 25 / 25 / 30    |
| 2x32x32, 512 -> 512, 4    | 0.84  | 114 / 114 / 110   | 111 / 131 / 137 | 86 / 79 / 100   |
| 1x41x41, 512 -> 1024, 12  | 0.65  | 184 / 208 / 223   | 128 / 132 / 140 | 112 / 118 / 257 |
| 1x41x41, 2048 -> 21, 24   | 0.37  | 111 / 16 / 83     | 24 / 28 / 14    | 23 / 9 / 171    |
| 1x41x41, 2048 -> 21, 12   | 0.65  | 33 / 16 / 60      | 50 / 49 / 107   | 57 / 14 / 22    |

The kernel gradient of thin convolutions is another product that XLA's convolution makes badly: the more so where the
number of channels out is no multiple of 32. Here the pixels of all taps of a few rows lie beside each other, in the
core's cache, and make one product an image ("rows"); or the cotangents of all taps do ("shifts"), which are fewer
numbers where there are fewer channels out than in. Two cores, kernel 3x3, rate 1, kernel gradient, wall time, the best
of nine or more on a machine that others share (PyTorch: another day):

| input, channels        | XLA's convolution | rows | shifts | PyTorch |
|------------------------|-------------------|------|--------|---------|
| 3x224x224, 48 -> 12    | 78                | 40   | 21     | 16      |
| 3x224x224, 168 -> 12   | 220               | 85   | 44     | 42      |
| 3x112x112, 144 -> 12   | 51                | 27   | 11     | 11      |
| 3x56x56, 300 -> 12     |                   | 16   | 6.0    | 6.2     |
| 3x28x28, 400 -> 12     |                   | 6.1  | 2.8    | 1.6     |
| 4x256x256, 16 -> 16    | 27                | 19   | 26     | 6.9     |
| 4x256x256, 32 -> 16    | 52                | 37   | 31     |         |
| 2x64x64, 128 -> 16     | 19                | 4.5  | 2.6    |         |
| 4x256x256, 16 -> 21    | 138               | 19   | 39     | 14      |
| 2x64x64, 256 -> 21     | 22                | 13   | 7.2    |         |
| 2x64x64, 96 -> 48      | 15                | 7.7  | 7.4    |         |
| 2x64x64, 160 -> 80     | 20                | 19   | 15     |         |
| 2x32x32, 320 -> 160    | 14                | 18   | 18     |         |
| 2x64x64, 256 -> 64     | 26                | 24   | 20     |         |
| 4x128x128, 64 -> 32    | 27                | 33   | 28     |         |
| 3x224x224, 3 -> 48     | 29                | 10   |        |         |

Of 32 or 64 channels out XLA makes one task (`ops/beside.py`), in up to 1.5 times the wall time but 0.5 to 0.8 of the
processor time: shifts for 128 -> 32 and 192 -> 64 made U-Net's step no faster.

Tried on dense kernels at rate 1 and found no faster than XLA's convolution, so left to it: the same products over
shifted slices, im2col (whole, by kernel rows, by blocks of rows), the kernel gradient as products of shifted slices.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.ops.beside import blocks, convolve_beside
from jaxseg.ops.stock_conv import stock_conv

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]

# Largest share of products with a pixel at which this lowering wins: values and input gradient, kernel gradient.
SHARE = 0.8
KERNEL_SHARE = 0.65
# Fewer channels on either side make the products thin: they then pay only where few of them are left.
CHANNELS = 64
THIN_SHARE = 0.4
THIN_CHANNELS = 16


# The kernel gradient by rows: at most so many channels out and numbers a pixel, and at least so many pixels an image.
ROWS_CHANNELS = 64
ROWS_COLUMNS = 4096
ROWS_PIXELS = 196
# Numbers of the image that lie beside each other at a time: larger ones leave the caches, smaller ones add more often.
ROWS_BLOCK = 2**19
FEW_CHANNELS = 4  # of an image
ODD_CHANNELS = 96  # odd multiples of 16 up to here
# By shifts: at least so many channels in for one out; numbers of both sides at a time.
SHIFTS_RATIO = 2
SHIFTS_BLOCK = 2**19


class Lowering(NamedTuple):
    """What a CPU does: values and input gradient tap by tap or XLA's; kernel gradient by one of four ways.

    These are "taps", "rows", "shifts" and "xla". `blocks` and `input_blocks`: of rows, into which XLA's convolutions of
    the image and of the cotangent are cut (`ops/beside.py`).
    """

    by_taps: bool
    kernel: str
    blocks: int = 1
    input_blocks: int = 1


class _Tap(NamedTuple):
    """A kernel tap (row, column) and the rectangles that it joins: first output and input pixel, and their number."""

    at: Pair
    output: Pair
    image: Pair
    extent: Pair


def useful_share(size: Pair, kernel_size: Pair, pads: Pads, dilation: Pair) -> float:
    """Share of the products of a stride-1 convolution that have a pixel in them and not padding, 0 .. 1.

    Example: 3 taps at rate 12 on 32 px see 20, 32 and 20 pixels of 32: 0.75 along each axis, 0.5625 of a square.
    """
    share = 1.0
    for n, k, (lo, hi), d in zip(size, kernel_size, pads, dilation, strict=True):
        out = n + lo + hi - (k - 1) * d
        share *= sum(length for _, _, _, length in _along(n, out, k, lo, d)) / (k * out)
    return share


def lowering(image: Sequence[int], kernel: Sequence[int], pads: Pads, dilation: Pair) -> Lowering | None:
    """The CPU's way for `[b, h, w, c]` and `[kh, kw, c, n]` at stride 1, by shapes alone; None: XLA's own."""
    (h, w), (kh, kw, c, n) = image[1:3], kernel
    if max(dilation) > 1 and min(c, n) >= THIN_CHANNELS:
        share = useful_share((h, w), (kh, kw), pads, dilation)
        if 0 < share <= (SHARE if min(c, n) >= CHANNELS else THIN_SHARE):
            return Lowering(True, "taps" if share <= KERNEL_SHARE else "xla")
    out = _out((h, w), (kh, kw), pads, dilation)
    back = _gradient_pads((h, w), out, (kh, kw), pads, dilation)
    chosen = Lowering(
        False,
        _kernel_gradient_lowering(image, kernel),
        blocks(image, kernel, pads, dilation),
        blocks((image[0], *out, n), (kh, kw, n, c), back, dilation),
    )
    return None if chosen == Lowering(False, "xla") else chosen


def _kernel_gradient_lowering(image: Sequence[int], kernel: Sequence[int]) -> str:
    (h, w), (kh, kw, c, n) = image[1:3], kernel
    enough, spread = h * w >= ROWS_PIXELS, kh * kw > 1
    thin = n % 16 != 0 or (n % 32 != 0 and n <= ODD_CHANNELS) or c <= FEW_CHANNELS
    if enough and spread and thin and c >= SHIFTS_RATIO * n:
        return "shifts"
    if enough and thin and n <= ROWS_CHANNELS and kh * kw * c <= ROWS_COLUMNS:
        return "rows"
    return "xla"


def _along(n: int, out: int, k: int, lo: int, d: int) -> Iterator[tuple[int, int, int, int]]:
    """Along one axis, for each tap that sees a pixel: tap, first output, its pixel, number of outputs."""
    for i in range(k):
        first, stop = max(0, lo - i * d), min(out, n + lo - i * d)
        if first < stop:
            yield i, first, first + i * d - lo, stop - first


def _taps(size: Pair, out: Pair, kernel_size: Pair, pads: Pads, dilation: Pair) -> list[_Tap]:
    """All taps that see a pixel, the one that sees most first: it begins the sum, without zeros to add to."""
    rows, columns = (
        list(_along(n, o, k, lo, d)) for n, o, k, (lo, _), d in zip(size, out, kernel_size, pads, dilation, strict=True)
    )
    taps = [_Tap((i, j), (o, p), (y, x), (h, w)) for i, o, y, h in rows for j, p, x, w in columns]
    return sorted(taps, key=lambda tap: -tap.extent[0] * tap.extent[1])


def _cut(x: jax.Array, start: Pair, extent: Pair) -> jax.Array:
    (y, left), (h, w) = start, extent
    return lax.slice(x, (0, y, left, 0), (x.shape[0], y + h, left + w, x.shape[3]))


def _add(total: jax.Array | None, part: jax.Array, start: Pair, size: Pair) -> jax.Array:
    """`part` added to its place in `total`, which XLA does in place: one product is in memory at a time."""
    (y, x), (h, w) = start, part.shape[1:3]
    if total is None:
        edges = ((0, 0, 0), (y, size[0] - y - h, 0), (x, size[1] - x - w, 0), (0, 0, 0))
        return lax.pad(part, jnp.zeros((), part.dtype), edges)
    return lax.dynamic_update_slice(total, _cut(total, start, (h, w)) + part, (0, y, x, 0))


def _product(x: jax.Array, kernel: jax.Array, axis: int, precision: Any) -> jax.Array:
    dimensions = (((3,), (axis,)), ((), ()))
    return lax.dot_general(x, kernel, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _out(size: Pair, kernel_size: Pair, pads: Pads, dilation: Pair) -> Pair:
    rows, columns = (n + sum(p) - (k - 1) * d for n, k, p, d in zip(size, kernel_size, pads, dilation, strict=True))
    return rows, columns


def _gradient_pads(
    size: Sequence[int], out: Sequence[int], kernel_size: Sequence[int], pads: Pads, dilation: Pair
) -> Pads:
    """Padding of the cotangent, for the convolution with the turned kernel that gives the image's gradient."""
    along = zip(size, out, kernel_size, pads, dilation, strict=True)
    rows, columns = (((k - 1) * d - lo, n + lo - o) for n, o, k, (lo, _), d in along)
    return rows, columns


def _forward_by_taps(x: jax.Array, kernel: jax.Array, *, pads: Pads, dilation: Pair, precision: Any) -> jax.Array:
    (h, w), (kh, kw) = x.shape[1:3], kernel.shape[:2]
    out = _out((h, w), (kh, kw), pads, dilation)
    total = None
    for tap in _taps((h, w), out, (kh, kw), pads, dilation):
        part = _product(_cut(x, tap.image, tap.extent), kernel[tap.at], 0, precision)
        total = _add(total, part, tap.output, out)
    assert total is not None  # useful_share > 0
    return total.astype(x.dtype)


def _input_gradient_by_taps(
    x: jax.Array, kernel: jax.Array, g: jax.Array, *, pads: Pads, dilation: Pair, precision: Any
) -> jax.Array:
    (h, w), (kh, kw) = x.shape[1:3], kernel.shape[:2]
    total = None
    for tap in _taps((h, w), (g.shape[1], g.shape[2]), (kh, kw), pads, dilation):
        part = _product(_cut(g, tap.output, tap.extent), kernel[tap.at], 1, precision)
        total = _add(total, part, tap.image, (h, w))
    assert total is not None
    return total.astype(x.dtype)


def _input_gradient_beside(
    x: jax.Array, kernel: jax.Array, g: jax.Array, *, pads: Pads, dilation: Pair, number: int, precision: Any
) -> jax.Array:
    back = _gradient_pads(x.shape[1:3], g.shape[1:3], kernel.shape[:2], pads, dilation)
    turned = lax.rev(kernel, (0, 1)).swapaxes(2, 3)
    return convolve_beside(g, turned, pads=back, dilation=dilation, number=number, precision=precision)


def _kernel_gradient_by_taps(
    x: jax.Array, kernel: jax.Array, g: jax.Array, *, pads: Pads, dilation: Pair, precision: Any
) -> jax.Array:
    (h, w), (kh, kw, c, n) = x.shape[1:3], kernel.shape
    pixels = (((0, 1, 2), (0, 1, 2)), ((), ()))
    dot = functools.partial(
        lax.dot_general, dimension_numbers=pixels, precision=precision, preferred_element_type=jnp.float32
    )
    parts = {}
    for tap in _taps((h, w), (g.shape[1], g.shape[2]), (kh, kw), pads, dilation):
        left, right = _cut(x, tap.image, tap.extent), _cut(g, tap.output, tap.extent)
        # XLA's CPU writes the left side of a product transposed: the one with fewer channels. Without the barrier it
        # turns the sides round again.
        parts[tap.at] = dot(left, right) if c <= n else lax.optimization_barrier(dot(right, left)).T
    blind = jnp.zeros((c, n), jnp.float32)
    gradient = jnp.stack([parts.get((i, j), blind) for i in range(kh) for j in range(kw)])
    return gradient.reshape(kernel.shape).astype(kernel.dtype)


def _kernel_gradient_by_rows(
    x: jax.Array, kernel: jax.Array, g: jax.Array, *, pads: Pads, dilation: Pair, precision: Any
) -> jax.Array:
    """For a block of rows at a time, the pixels of all taps beside each other and one product an image.

    The batch axis stays in the sum, so that a batch split over devices is summed once, at the end.
    """
    (kh, kw, c, n), (b, h, w, _), (down, right) = kernel.shape, g.shape, dilation
    most = max(1, ROWS_BLOCK // (w * kh * kw * c))
    rows = max(r for r in range(1, min(most, h) + 1) if h % r == 0)
    padded = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)))
    padded = lax.optimization_barrier(padded)
    dot = functools.partial(lax.dot_general, dimension_numbers=(((1,), (1,)), ((0,), (0,))), precision=precision)

    def body(block: jax.Array, total: jax.Array) -> jax.Array:
        pixels = lax.dynamic_slice_in_dim(padded, block * rows, rows + (kh - 1) * down, 1)
        taps = [_cut(pixels, (i * down, j * right), (rows, w)) for i in range(kh) for j in range(kw)]
        columns = jnp.concatenate(taps, axis=-1).astype(jnp.float32).reshape(b, rows * w, kh * kw * c)
        part = lax.dynamic_slice_in_dim(g, block * rows, rows, 1).astype(jnp.float32)
        return total + dot(part.reshape(b, rows * w, n), columns)

    total = lax.fori_loop(0, h // rows, body, jnp.zeros((b, n, kh * kw * c), jnp.float32))
    return jnp.sum(total, axis=0).T.reshape(kernel.shape).astype(kernel.dtype)


def _kernel_gradient_by_shifts(
    x: jax.Array, kernel: jax.Array, g: jax.Array, *, pads: Pads, dilation: Pair, precision: Any
) -> jax.Array:
    """The same with the image as it is and the cotangents of all taps beside each other: kh kw n columns, not kh kw c.

    Pixel p meets the cotangent of output `p + lo - tap * dilation`, zero where there is none.
    """
    (kh, kw, c, n), (b, h, w, _), (down, right) = kernel.shape, x.shape, dilation
    most = max(1, SHIFTS_BLOCK // (w * (2 * kh * kw * n + c)))
    rows = max(r for r in range(1, min(most, h) + 1) if h % r == 0)
    above, beside = _gradient_pads((h, w), g.shape[1:3], (kh, kw), pads, dilation)
    padded = lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), (*above, 0), (*beside, 0), (0, 0, 0)))
    dot = functools.partial(lax.dot_general, dimension_numbers=(((1,), (1,)), ((0,), (0,))), precision=precision)

    def body(block: jax.Array, total: jax.Array) -> jax.Array:
        seen = lax.dynamic_slice_in_dim(padded, block * rows, rows + (kh - 1) * down, 1)
        taps = [
            _cut(seen, ((kh - 1 - i) * down, (kw - 1 - j) * right), (rows, w)) for i in range(kh) for j in range(kw)
        ]
        columns = jnp.concatenate(taps, axis=-1).astype(jnp.float32).reshape(b, rows * w, kh * kw * n)
        pixels = lax.dynamic_slice_in_dim(x, block * rows, rows, 1).astype(jnp.float32)
        return total + dot(columns, pixels.reshape(b, rows * w, c))

    total = lax.fori_loop(0, h // rows, body, jnp.zeros((b, kh * kw * n, c), jnp.float32))
    return jnp.sum(total, axis=0).reshape(kh, kw, n, c).swapaxes(2, 3).astype(kernel.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def convolve(
    x: jax.Array, kernel: jax.Array, pads: Pads, dilation: Pair, chosen: Lowering, precision: Any = None
) -> jax.Array:
    """Stride-1 convolution; on a CPU each of its three parts as chosen, elsewhere XLA's own.

    `y[o, p, n] = sum_ijm kernel[i, j, m, n] x[o + d i - lo, p + d j - lo, m]`.

    Args:
      x: `[b, h, w, c]`.
      kernel: `[kh, kw, c, n]` of x's dtype.
      pads: (before, after) for rows and for columns.
      dilation: rows, columns.
      chosen: see `lowering`; by taps only where `useful_share` is above 0.
      precision: as `jax.lax.dot_general`.

    Returns:
      `[b, h', w', n]` of x's dtype, summed in float32.
    """
    return _forward(x, kernel, pads, dilation, chosen, precision)


def _by_platform(cpu: Callable[..., jax.Array], default: Callable[..., jax.Array], *arguments: jax.Array) -> jax.Array:
    return default(*arguments) if cpu is default else lax.platform_dependent(*arguments, cpu=cpu, default=default)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5), inline=True)
def _forward(
    x: jax.Array, kernel: jax.Array, pads: Pads, dilation: Pair, chosen: Lowering, precision: Any
) -> jax.Array:
    options: dict[str, Any] = {"pads": pads, "dilation": dilation, "precision": precision}
    stock = functools.partial(stock_conv, **options)
    cpu: Callable[..., jax.Array] = stock
    if chosen.by_taps:
        cpu = functools.partial(_forward_by_taps, **options)
    elif chosen.blocks > 1:
        cpu = functools.partial(convolve_beside, number=chosen.blocks, **options)
    return _by_platform(cpu, stock, x, kernel)


def _vjp_forward(
    x: jax.Array, kernel: jax.Array, pads: Pads, dilation: Pair, chosen: Lowering, precision: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _forward(x, kernel, pads, dilation, chosen, precision), (x, kernel)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), inline=True)
def _vjp_backward(
    pads: Pads,
    dilation: Pair,
    chosen: Lowering,
    precision: Any,
    residuals: tuple[jax.Array, jax.Array],
    g: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    options: dict[str, Any] = {"pads": pads, "dilation": dilation, "precision": precision}

    def stock_input(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: stock_conv(x, kernel, **options), x)[1](g)[0]

    def stock_kernel(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
        return jax.vjp(lambda kernel: stock_conv(x, kernel, **options), kernel)[1](g)[0]

    of_input: Callable[..., jax.Array] = stock_input
    if chosen.by_taps:
        of_input = functools.partial(_input_gradient_by_taps, **options)
    elif chosen.input_blocks > 1:
        of_input = functools.partial(_input_gradient_beside, number=chosen.input_blocks, **options)
    of_kernel: dict[str, Callable[..., jax.Array]] = {
        "taps": functools.partial(_kernel_gradient_by_taps, **options),
        "rows": functools.partial(_kernel_gradient_by_rows, **options),
        "shifts": functools.partial(_kernel_gradient_by_shifts, **options),
        "xla": stock_kernel,
    }
    arguments = (*residuals, g)
    return (
        _by_platform(of_input, stock_input, *arguments),
        _by_platform(of_kernel[chosen.kernel], stock_kernel, *arguments),
    )


convolve.defvjp(_vjp_forward, _vjp_backward)
