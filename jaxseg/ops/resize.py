"""Resizing whose convention is always stated: half_pixel or align_corners, bilinear or nearest, never antialiased."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

ALIGNMENTS = ("half_pixel", "align_corners")
METHODS = ("bilinear", "nearest")
# The gradient gathers at most so many outputs an input and axis (enlarging 16 times); then it is products.
MAX_GATHERED = 32


def source_positions(length: int, size: int, *, alignment: str) -> np.ndarray:
    """Where each output sample lies in the input, before clamping at the borders; float64 `[size]`.

    half_pixel: `(i + 0.5) length / size - 0.5` (PyTorch align_corners=False, cv2.resize).
    align_corners: `i (length - 1) / (size - 1)`, 0 for size 1 (TF1 align_corners=True, Caffe Interp).
    """
    grid = np.arange(size, dtype=np.float64)
    if alignment == "half_pixel":
        return (grid + 0.5) * length / size - 0.5
    return grid * (length - 1) / max(size - 1, 1)


def _neighbours(length: int, size: int, alignment: str, method: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower index, upper index and the upper one's weight for each output sample."""
    position = source_positions(length, size, alignment=alignment)
    if method == "nearest":
        # align_corners rounds to the nearest sample; half_pixel takes the pixel whose area holds the centre: both are
        # floor(position + 0.5), with a hair against 2.4999999 for 2.5.
        index = np.clip(np.floor(position + 0.5 + 1e-9), 0, length - 1).astype(np.int32)
        return index, index, np.zeros(size, np.float32)
    position = np.clip(position, 0, length - 1)
    low = np.floor(position).astype(np.int32)
    return low, np.minimum(low + 1, length - 1), (position - low).astype(np.float32)


def _matrix(length: int, size: int, alignment: str, method: str) -> np.ndarray:
    return linear_map(length, *_neighbours(length, size, alignment, method))


def linear_map(length: int, low: np.ndarray, high: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`(1 - weight) x[low] + weight x[high]` along one axis of `length` as a matrix `[outputs, length]`, float32."""
    matrix = np.zeros((len(low), length), np.float32)
    np.add.at(matrix, (np.arange(len(low)), low), 1 - weight)
    np.add.at(matrix, (np.arange(len(low)), high), weight)
    return matrix


def resize(x: jax.Array, size: Sequence[int], *, alignment: str, method: str = "bilinear") -> jax.Array:
    """Resizes h and w of channels-last images.

    Each output sample is a weighted sum of at most 2 x 2 input samples (no antialiasing when it shrinks). On CPUs and
    NVIDIA GPUs the samples are gathered, along the axis first that leaves less to the other one; elsewhere it is two
    matrix products. The gradient of a gather that JAX derives is a scatter (`[4, 22, 22, 11] -> [352, 352]` 31 ms);
    here it gathers, for each input, the few outputs that it has a part in (GPUs: docs/gpu.md). One core with AVX-512,
    milliseconds, float32, bilinear, gradient, medians of 11, by products with a matrix an image and as here:

    | images                              | products | gathered |
    |-------------------------------------|----------|----------|
    | `[4, 16, 16, 256] -> [64, 64]`      | 3.24     | 2.15     |
    | `[4, 64, 64, 11] -> [256, 256]`     | 9.00     | 0.90     |
    | `[4, 64, 64, 21] -> [256, 256]`     | 16.2     | 2.52     |
    | `[1, 129, 129, 21] -> [513, 513]`   | 29.6     | 2.36     |
    | `[2, 33, 65, 19] -> [513, 1025]`    | 28.6     | 15.8     |
    | `[4, 6, 6, 512] -> [64, 64]`        | 4.00     | 3.74     |
    | `[2, 64, 64, 128] -> [32, 32]`      | 2.45     | 0.09     |
    | `[2, 3, 3, 512] -> [60, 60]`, no    | 0.49     | 3.40     |
    | `[1, 16, 16, 21] -> [512, 512]`, no | 3.80     | 7.79     |

    Forward (both cores, milliseconds of processor time) the first two: gathered 1.6 and 2.6, products with a matrix an
    image 12.0 and 7.9, columns gathered and rows by products 3.8 and 6.0, PyTorch 2.13 1.7 and 2.5.

    Args:
      x: `[*b, h, w, c]` floating.
      size: (height, width) of the result.
      alignment: "half_pixel" or "align_corners", see `source_positions`.
      method: "bilinear" or "nearest".

    Returns:
      `[*b, height, width, c]` of x's dtype; computed in float32.

    Raises:
      ValueError: unknown alignment or method, empty image or size.
    """
    if alignment not in ALIGNMENTS or method not in METHODS:
        raise ValueError(f"alignment is one of {ALIGNMENTS}, method of {METHODS}; not {alignment!r}, {method!r}")
    if x.ndim < 3 or 0 in x.shape[-3:] or min(size) < 1:
        raise ValueError(f"resize takes [*b, h, w, c] with pixels and a positive size, not {x.shape} to {size}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"resize takes floating images, not {x.dtype}")
    height, width = int(size[0]), int(size[1])
    *batch, h, w, c = x.shape
    if (h, w) == (height, width):
        return x
    images = x if len(batch) == 1 else x.reshape(-1, h, w, c)
    y = _resize(images.astype(jnp.float32), (height, width), alignment, method, x.dtype == jnp.float32).astype(x.dtype)
    return y if len(batch) == 1 else y.reshape(*batch, height, width, c)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _resize(x: jax.Array, size: tuple[int, int], alignment: str, method: str, logits: bool) -> jax.Array:
    return _forward(x, size, alignment, method, logits)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4), inline=True)
def _forward(x: jax.Array, size: tuple[int, int], alignment: str, method: str, logits: bool) -> jax.Array:
    h, w = x.shape[1:3]

    def gather(x: jax.Array) -> jax.Array:
        # The barrier keeps XLA from computing the first pass anew for each of the samples that the second one takes.
        if size[0] < h:
            return columns(lax.optimization_barrier(rows(x)))
        return rows(lax.optimization_barrier(columns(x)))

    def rows(x: jax.Array) -> jax.Array:
        low, high, weight = _neighbours(h, size[0], alignment, method)
        return x[:, low] if method == "nearest" else _mix(x[:, low], x[:, high], weight[:, None, None])

    def columns(x: jax.Array) -> jax.Array:
        low, high, weight = _neighbours(w, size[1], alignment, method)
        return x[:, :, low] if method == "nearest" else _mix(x[:, :, low], x[:, :, high], weight[:, None])

    def products(x: jax.Array) -> jax.Array:
        rows = jnp.einsum("oh,bhwc->bowc", _matrix(h, size[0], alignment, method), x, precision="highest")
        return jnp.einsum("pw,bowc->bopc", _matrix(w, size[1], alignment, method), rows, precision="highest")

    def on_gpus(x: jax.Array) -> jax.Array:
        # A loss reads its logits more than once; XLA would gather them anew for each of its sums.
        return lax.optimization_barrier(gather(x)) if logits else gather(x)

    return lax.platform_dependent(x, cpu=gather, cuda=on_gpus, default=products)


def _mix(low: jax.Array, high: jax.Array, weight: np.ndarray) -> jax.Array:
    return low * (1 - weight) + high * weight


def _vjp_forward(
    x: jax.Array, size: tuple[int, int], alignment: str, method: str, logits: bool
) -> tuple[jax.Array, tuple[int, int]]:
    return _forward(x, size, alignment, method, logits), (x.shape[1], x.shape[2])


def _vjp_backward(
    size: tuple[int, int], alignment: str, method: str, logits: bool, residuals: tuple[int, int], g: jax.Array
) -> tuple[jax.Array]:
    rows = _matrix(residuals[0], size[0], alignment, method)
    columns = _matrix(residuals[1], size[1], alignment, method)

    def products(g: jax.Array) -> jax.Array:
        y = jnp.einsum("oh,bopc->bhpc", rows, g, precision="highest")
        return jnp.einsum("pw,bhpc->bhwc", columns, y, precision="highest")

    def product_an_image(g: jax.Array) -> jax.Array:
        # A matrix for each image and each row: the plain products would transpose what they give.
        b, _, _, c = g.shape
        h, w = residuals
        y = _each(rows.T, g.reshape(b, size[0], size[1] * c))
        return _each(columns.T, y.reshape(b * h, size[1], c)).reshape(b, h, w, c)

    def gather(g: jax.Array) -> jax.Array:
        # As in the forward pass, the barrier keeps the first pass from being computed anew for each of its readers.
        return gathered(lax.optimization_barrier(gathered(g, rows, 1)), columns, 2)

    if not can_gather(rows, columns):
        return (lax.platform_dependent(g, cpu=product_an_image, default=products),)
    return (lax.platform_dependent(g, cpu=gather, cuda=gather, default=products),)


def _longest(matrix: np.ndarray) -> int:
    """The most outputs that an input has a part in."""
    return int(np.count_nonzero(matrix, axis=0).max())


def can_gather(*matrices: np.ndarray) -> bool:
    """Whether no input of linear maps `[outputs, inputs]` has a part in too many outputs to gather them."""
    return max(map(_longest, matrices)) <= MAX_GATHERED


def gathered(g: jax.Array, matrix: np.ndarray, axis: int) -> jax.Array:
    """`matrix.T` along an axis, as a sum of the outputs that each input has a part in: they lie beside each other."""
    outputs, inputs = matrix.shape
    number = _longest(matrix)
    first = np.minimum(np.argmax(matrix != 0, axis=0), outputs - number)
    shape = [inputs if a == axis else 1 for a in range(g.ndim)]
    total = None
    for i in range(number):
        weight = matrix[first + i, np.arange(inputs)].reshape(shape)
        part = jnp.take(g, first + i, axis=axis, mode="clip") * weight
        total = part if total is None else total + part
    assert total is not None  # every matrix has an output
    return total


def _each(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    """`[m, k]` times each of `[b, k, n]`."""
    many = jnp.broadcast_to(matrix, (x.shape[0], *matrix.shape))
    return lax.dot_general(many, x, (((2,), (1,)), ((0,), (0,))), precision="highest")


_resize.defvjp(_vjp_forward, _vjp_backward)
