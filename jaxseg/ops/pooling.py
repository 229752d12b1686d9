"""Pooling and its inverse, with gradients that need no scatter.

XLA's gradient of a maximum's window is a select-and-scatter, which on a CPU runs pixel by pixel and on a GPU adds with
atomics, in no fixed order. Here the forward pass keeps the position of the maximum inside its window, one byte an
output, and the gradient places each value with one comparison a window position, in a fixed order.
Milliseconds on two cores, float32, forward / gradient:

| input, window, stride | XLA's window | this file |
|-----------------------|--------------|-----------|
| 2x176x176x64, 2x2, 2  | 1.1 / 70     | 0.7 / 0.8 |
| 2x176x176x64, 3x3, 2  | 4.6 / 104    | 2.9 / 1.8 |
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseg.ops.conv import Padding, explicit_padding
from jaxseg.ops.interlace import interlaced, placed_apart

Pair = tuple[int, int]

# Larger windows would unroll into too many slices; they take XLA's own window and gradient.
MAX_TAPS = 25


class _Window(NamedTuple):
    """A square window: side, stride, (before, after) padding of rows and of columns."""

    size: int
    stride: int
    pads: tuple[Pair, Pair]

    def outputs(self, shape: Sequence[int]) -> Pair:
        """Rows and columns of the result for `[b, h, w, c]`."""
        rows, columns = (
            (n + sum(p) - self.size) // self.stride + 1 for n, p in zip(shape[1:3], self.pads, strict=True)
        )
        return rows, columns


def pooled_size(length: int, window: int, stride: int, pads: Pair, *, ceil: bool = False) -> int:
    """Number of windows along one axis.

    floor: `(n + lo + hi - k) // s + 1`. ceil (Caffe, PyTorch's ceil_mode): `ceil((n + lo + hi - k) / s) + 1`, less one
    where the last window would begin in the padding behind the image, and at least one.

    Example: 5 px, window 2, stride 2: 2 with floor, 3 with ceil.
    """
    room = length + sum(pads) - window
    if not ceil:
        return room // stride + 1
    count = -(-room // stride) + 1
    if (count - 1) * stride >= length + pads[0]:
        count -= 1
    return max(count, 1)


def _window(
    x: jax.Array, size: int, strides: int | None, padding: int | Padding, ceil: bool, *, name: str
) -> tuple[_Window, tuple[Pair, Pair]]:
    """The window with the padding that its outputs need, and the padding as it was stated."""
    stride = size if strides is None else strides
    if x.ndim < 3 or 0 in x.shape[-3:] or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} takes floating [*b, h, w, c] with pixels, not {x.dtype} {x.shape}")
    if size < 1 or stride < 1:
        raise ValueError(f"{name}: window {size} and stride {stride} must be positive")
    image: Pair = (x.shape[-3], x.shape[-2])
    stated = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    pads = explicit_padding(stated, size=image, kernel_size=(size,) * 2, strides=(stride,) * 2, dilation=(1, 1))
    if any(not 0 <= p < size for pair in pads for p in pair):
        raise ValueError(f"{name}: padding {pads} must be smaller than the window of {size}")
    counts = [pooled_size(n, size, stride, p, ceil=ceil) for n, p in zip(image, pads, strict=True)]
    if min(counts) < 1:
        raise ValueError(f"{name}: a window of {size} does not fit the image {image} with padding {pads}")
    needed = [
        (lo, max((count - 1) * stride + size - n - lo, 0))
        for count, n, (lo, _) in zip(counts, image, pads, strict=True)
    ]
    return _Window(size, stride, (needed[0], needed[1])), pads


def _images(x: jax.Array) -> jax.Array:
    return x.reshape(-1, *x.shape[-3:])


def _pad(x: jax.Array, pads: Sequence[Pair], value: float) -> jax.Array:
    """Pads h and w; the barrier keeps XLA from computing the padding anew in each slice that is taken of it."""
    if all(p == (0, 0) for p in pads):
        return x
    padded = lax.pad(x, jnp.asarray(value, x.dtype), ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)))
    return lax.optimization_barrier(padded)


def _taps(x: jax.Array, window: _Window, fill: float) -> list[jax.Array]:
    """For each position in the window, row by row, what stands there in every window: `[b, h', w', c]`."""
    rows, columns = window.outputs(x.shape)
    padded = _pad(x, window.pads, fill)
    b, _, _, c = padded.shape
    s = window.stride
    return [
        lax.slice(padded, (0, i, j, 0), (b, i + (rows - 1) * s + 1, j + (columns - 1) * s + 1, c), (1, s, s, 1))
        for i in range(window.size)
        for j in range(window.size)
    ]


def _first_maximum(x: jax.Array, window: _Window) -> tuple[jax.Array, jax.Array]:
    """The maximum of each window and the position, row by row, of the first pixel that has it (int8)."""
    first, *others = _taps(x, window, -np.inf)
    value, index = first, jnp.zeros(first.shape, jnp.int8)
    for t, tap in enumerate(others, start=1):
        index = jnp.where(tap > value, jnp.int8(t), index)
        value = lax.max(value, tap)
    return value, index


def _place(values: jax.Array, indices: jax.Array, size: Pair, window: _Window) -> jax.Array:
    """`[b, h', w', c]` put back at their positions in `[b, *size, c]`; where windows overlap, sums.

    Image row q has phase `q mod s`: each phase is a sum over the few windows that see it, and the phases interlace.
    """
    k, s, pads = window
    b, rows, columns, c = values.shape
    if k == s:
        return _within(placed_apart(values, indices, k), size, pads)
    up_rows, up_columns = (-(-(n + sum(p)) // s) for n, p in zip(size, pads, strict=True))
    back = (k - 1) // s
    edges = ((back, up_rows - rows), (back, up_columns - columns))
    values, indices = _pad(values, edges, 0), _pad(indices, edges, -1)

    def phase(a: int, e: int) -> jax.Array:
        parts = []
        for i in range(a, k, s):
            for j in range(e, k, s):
                start = (0, back - i // s, back - j // s, 0)
                stop = (b, start[1] + up_rows, start[2] + up_columns, c)
                chosen = lax.slice(indices, start, stop) == i * k + j
                parts.append(jnp.where(chosen, lax.slice(values, start, stop), jnp.zeros((), values.dtype)))
        if not parts:
            return jnp.zeros((b, up_rows, up_columns, c), values.dtype)
        return functools.reduce(jnp.add, [p.astype(jnp.float32) for p in parts]).astype(values.dtype)

    phases = [[phase(a, e) for e in range(s)] for a in range(s)]
    return _within(interlaced(phases), size, pads)


def _within(full: jax.Array, size: Pair, pads: tuple[Pair, Pair]) -> jax.Array:
    """The image inside its padding; pixels that no window reaches are 0."""
    edges = [(-lo, lo + n - have) for n, (lo, _), have in zip(size, pads, full.shape[1:3], strict=True)]
    if all(edge == (0, 0) for edge in edges):
        return full
    return lax.pad(full, jnp.zeros((), full.dtype), ((0, 0, 0), (*edges[0], 0), (*edges[1], 0), (0, 0, 0)))


def _pick(image: jax.Array, indices: jax.Array, window: _Window) -> jax.Array:
    """The transpose of `_place`: from `[b, h, w, c]` the values at the positions, `[b, h', w', c]`."""
    zero = jnp.zeros((), image.dtype)
    return functools.reduce(
        jnp.add, [jnp.where(indices == t, tap, zero) for t, tap in enumerate(_taps(image, window, 0))]
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x: jax.Array, window: _Window) -> jax.Array:
    def shifted(x: jax.Array) -> jax.Array:
        return functools.reduce(lax.max, _taps(x, window, -np.inf))

    return lax.platform_dependent(x, cpu=shifted, default=functools.partial(_reduce_window, window=window))


def _reduce_window(x: jax.Array, window: _Window) -> jax.Array:
    k, s, pads = window
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, k, k, 1), (1, s, s, 1), ((0, 0), *pads, (0, 0)))


def _max_pool_forward(x: jax.Array, window: _Window) -> tuple[jax.Array, tuple[jax.Array, Pair]]:
    value, index = _first_maximum(x, window)
    return value, (index, (x.shape[1], x.shape[2]))


def _max_pool_backward(window: _Window, residuals: tuple[jax.Array, Pair], g: jax.Array) -> tuple[jax.Array]:
    return (_place(g, *residuals, window),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool_indices(x: jax.Array, window: _Window) -> tuple[jax.Array, jax.Array]:
    return _first_maximum(x, window)


def _max_pool_indices_forward(
    x: jax.Array, window: _Window
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, Pair]]:
    value, index = _first_maximum(x, window)
    return (value, index), (index, (x.shape[1], x.shape[2]))


def _max_pool_indices_backward(
    window: _Window, residuals: tuple[jax.Array, Pair], g: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array]:
    return (_place(g[0], *residuals, window),)


_max_pool_indices.defvjp(_max_pool_indices_forward, _max_pool_indices_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _unpool(values: jax.Array, indices: jax.Array, size: Pair, window: _Window) -> jax.Array:
    return _place(values, indices, size, window)


def _unpool_forward(values: jax.Array, indices: jax.Array, size: Pair, window: _Window) -> tuple[jax.Array, jax.Array]:
    return _place(values, indices, size, window), indices


def _unpool_backward(size: Pair, window: _Window, indices: jax.Array, g: jax.Array) -> tuple[jax.Array, None]:
    return _pick(g, indices, window), None


_unpool.defvjp(_unpool_forward, _unpool_backward)


def max_pool(
    x: jax.Array, window: int, *, strides: int | None = None, padding: int | Padding = 0, ceil: bool = False
) -> jax.Array:
    """`y[o, p] = max over the window of x[s o + i - lo, s p + j - lo]`; padding never wins.

    The gradient goes to the first maximum, row by row.

    Args:
      x: `[*b, h, w, c]` floating.
      window: side of the square window.
      strides: None takes the window's side.
      padding: on every side, or as `jaxseg.ops.conv.conv`.
      ceil: count the windows as Caffe and PyTorch's ceil_mode do, see `pooled_size`.

    Returns:
      `[*b, h', w', c]` of x's dtype.

    Raises:
      ValueError: no pixels, no window fits, or padding as large as the window.
    """
    checked, _ = _window(x, window, strides, padding, ceil, name="max_pool")
    pool = _max_pool if window * window <= MAX_TAPS else _reduce_window
    y = pool(_images(x), checked)
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def max_pool_with_indices(
    x: jax.Array, window: int = 2, *, strides: int | None = None, padding: int | Padding = 0, ceil: bool = False
) -> tuple[jax.Array, jax.Array]:
    """`max_pool` and where in its window each maximum stood.

    Args:
      x, window, strides, padding, ceil: as `max_pool`.

    Returns:
      Values `[*b, h', w', c]`, and int8 indices of that shape, `window * i + j`; on ties the first, as in Caffe.
      Window 2 of [[1, 3], [3, 0]]: value 3, index 1.

    Raises:
      ValueError: as `max_pool`, or a window of more than 25 pixels.
    """
    checked, _ = _window(x, window, strides, padding, ceil, name="max_pool_with_indices")
    if window * window > MAX_TAPS:
        raise ValueError(f"max_pool_with_indices takes windows of at most {MAX_TAPS} pixels, not {window} x {window}")
    values, indices = _max_pool_indices(_images(x), checked)
    shape = (*x.shape[:-3], *values.shape[1:])
    return values.reshape(shape), indices.reshape(shape)


def unpool(x: jax.Array, indices: jax.Array, size: Sequence[int], *, window: int = 2) -> jax.Array:
    """The values back at the places that `max_pool_with_indices` (stride = window) found them at, zeros elsewhere.

    Args:
      x: `[*b, h, w, c]` floating.
      indices: int8 of x's shape, 0 .. window^2 - 1; zeros give "bed of nails", the upper left corner.
      size: (height, width) of the result, the size before the pooling. Ceil pooling cannot tell 45 from 46.
      window: side of the window, and stride.

    Returns:
      `[*b, height, width, c]` of x's dtype.

    Raises:
      ValueError: shapes differ, indices are not int8, or pooling does not turn `size` into h, w.
    """
    height, width = int(size[0]), int(size[1])
    if indices.shape != x.shape or indices.dtype != jnp.int8:
        raise ValueError(f"unpool: indices {indices.dtype} {indices.shape} must be int8 of the shape {x.shape}")
    if not 1 <= window * window <= MAX_TAPS:
        raise ValueError(f"unpool takes windows of at most {MAX_TAPS} pixels, not {window} x {window}")
    if any(n not in (m // window, -(-m // window)) for n, m in zip(x.shape[-3:-1], (height, width), strict=True)):
        raise ValueError(f"unpool: a window of {window} does not pool {(height, width)} to {x.shape[-3:-1]}")
    ends = [max(n * window - m, 0) for n, m in zip(x.shape[-3:-1], (height, width), strict=True)]
    y = _unpool(_images(x), _images(indices), (height, width), _Window(window, window, ((0, ends[0]), (0, ends[1]))))
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def average_pool(
    x: jax.Array,
    window: int,
    *,
    strides: int | None = None,
    padding: int | Padding = 0,
    ceil: bool = False,
    count_include_pad: bool = True,
) -> jax.Array:
    """The mean of each window: a windowed sum; for windows of more than 25 pixels two products, along rows and columns.

    CPU milliseconds, 2x2 on 2x56x56x128, forward / with gradient: sum 1.0 / 0.7, products 3.6 / 6.7, PyTorch 0.6 / 1.0.

    Args:
      x, window, strides, padding, ceil: as `max_pool`.
      count_include_pad: the zeros of the padding count in the mean (Caffe, PyTorch's default); False divides by the
        number of pixels. What a ceil window has beyond the padding never counts.

    Returns:
      `[*b, h', w', c]` of x's dtype; computed in float32.

    Raises:
      ValueError: as `max_pool`.
    """
    checked, stated = _window(x, window, strides, padding, ceil, name="average_pool")
    counts = [pooled_size(n, window, checked.stride, p, ceil=ceil) for n, p in zip(x.shape[-3:-1], stated, strict=True)]
    rows, columns = (
        _mean_matrix(n, count, window, checked.stride, p, count_include_pad)
        for n, count, p in zip(x.shape[-3:-1], counts, stated, strict=True)
    )
    if window * window > MAX_TAPS:
        return _along_both(x, rows, columns)
    k, s, pads = checked
    image = _images(x).astype(jnp.float32)
    sums = lax.reduce_window(image, 0.0, lax.add, (1, k, k, 1), (1, s, s, 1), ((0, 0), *pads, (0, 0)))
    # Every pixel of a window has the same share.
    y = (sums * (rows.max(axis=1)[:, None, None] * columns.max(axis=1)[:, None])).astype(x.dtype)
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def _mean_matrix(length: int, count: int, window: int, stride: int, pads: Pair, include: bool) -> np.ndarray:
    """`[count, length]`: each row holds 1 / divisor at the pixels of its window."""
    start = np.arange(count) * stride - pads[0]
    stop = np.minimum(start + window, length + pads[1])
    pixel = np.arange(length)
    inside = (pixel >= start[:, None]) & (pixel < stop[:, None])
    divisor = stop - start if include else np.maximum(inside.sum(axis=1), 1)
    return inside.astype(np.float32) / divisor[:, None].astype(np.float32)


def adaptive_average_pool(x: jax.Array, size: int | Sequence[int]) -> jax.Array:
    """The mean of each of `size` bins; bin i of n pixels runs from `floor(i n / m)` to `ceil((i + 1) n / m)`.

    Bins overlap where m does not divide n, and repeat pixels where m > n, as in PyTorch.

    Args:
      x: `[*b, h, w, c]` floating.
      size: rows and columns of bins, one number or two.

    Returns:
      `[*b, *size, c]` of x's dtype; computed in float32.

    Raises:
      ValueError: no pixels or no bins.
    """
    bins = (size, size) if isinstance(size, int) else tuple(size)
    if x.ndim < 3 or 0 in x.shape[-3:] or len(bins) != 2 or min(bins) < 1:
        raise ValueError(f"adaptive_average_pool takes [*b, h, w, c] with pixels and bins, not {x.shape} to {bins}")

    def matrix(length: int, count: int) -> np.ndarray:
        i, pixel = np.arange(count)[:, None], np.arange(length)
        inside = (pixel >= i * length // count) & (pixel < -(-(i + 1) * length // count))
        return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)

    return _along_both(x, matrix(x.shape[-3], bins[0]), matrix(x.shape[-2], bins[1]))


def _along_both(x: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    y = jnp.einsum("oh,...hwc->...owc", rows, x.astype(jnp.float32), precision="highest")
    return jnp.einsum("pw,...owc->...opc", columns, y, precision="highest").astype(x.dtype)
