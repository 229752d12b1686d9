"""A 3x3 convolution of an image repeated to twice its size by nine products of the small image, for a CPU.

Along one axis, with the taps `k0, k1, k2` and zeros around the image, the enlarged image's convolution is

    y[2 u]     = k0 x[u - 1] + (k1 + k2) x[u] = a[u - 1] - a[u] + s[u],    a = k0 x, s = (k0 + k1 + k2) x,
    y[2 u + 1] = (k0 + k1) x[u] + k2 x[u + 1] = s[u] - z[u] + z[u + 1],    z = k2 x:

three products for two numbers where six are plain, and along both axes nine for four where 36 are. The nine are columns
of one matrix product of the small image as it is, and the sums read them shifted; the image's and the kernel's gradient
are one product each with the nine transposed sums of the cotangent.

Two cores with AVX-512, float32, batch 4, milliseconds alone, best of 15: values / both gradients, before (the enlarged
image by Winograd's way or XLA's convolution) and by nine products:

| small image, channels | before      | nine products |
|-----------------------|-------------|---------------|
| 8x8, 512 -> 256       | 8.5 / 17    | 3.3 / 7.0     |
| 16x16, 256 -> 128     | 8.1 / 19    | 3.7 / 6.5     |
| 32x32, 128 -> 64      | 9.5 / 30    | 4.1 / 7.7     |
| 64x64, 64 -> 32       | 13 / 50     | 5.3 / 11      |
| 128x128, 32 -> 16     | 16 / 47     | 8.2 / 20      |
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.ops.window import in_float32

# Rows (or columns) 2 u and 2 u + 1 of the output: product (a, s, z), its shift, its sign.
OUTPUTS = (((0, -1, 1), (0, 0, -1), (1, 0, 1)), ((1, 0, 1), (2, 0, -1), (2, 1, 1)))
# The gradients of a, s and z at u: row of the output 2 u + i, its sign. The transpose of the above.
COTANGENTS = (((2, 1), (0, -1)), ((0, 1), (1, 1)), ((-1, 1), (1, -1)))
# Zeros are put around the image where its area grows by less, else around the products.
PADDED_AREA = 1.2


@jax.custom_vjp
def conv_by_nine(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv(twice(x), kernel)`, summed in float32 at least.

    Args:
      x: `[b, h, w, c]`.
      kernel: `[3, 3, c, n]`.

    Returns:
      `[b, 2 h, 2 w, n]` of x's dtype.
    """
    (b, h, w, _), n = x.shape, kernel.shape[-1]
    image_is_padded = (h + 2) * (w + 2) < PADDED_AREA * h * w
    image = _bordered(x, 1) if image_is_padded else x
    products = lax.dot_general(in_float32(image), _nine_kernels(in_float32(kernel)), (((3,), (0,)), ((), ())))
    products = products if image_is_padded else _bordered(products, 1)

    def output(p: int, q: int) -> jax.Array:
        terms = []
        for row, down, row_sign in OUTPUTS[p]:
            for column, right, column_sign in OUTPUTS[q]:
                first = (3 * row + column) * n
                seen = products[:, 1 + down : 1 + down + h, 1 + right : 1 + right + w, first : first + n]
                terms.append((row_sign * column_sign, seen))
        return _signed_sum(terms)

    rows = [jnp.stack([output(p, q) for q in (0, 1)], axis=3) for p in (0, 1)]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, n).astype(x.dtype)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return conv_by_nine(x, kernel), (x, kernel)


def _backward(residuals: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    sums = _nine_cotangents(in_float32(g))
    of_x = lax.dot_general(sums, _nine_kernels(in_float32(kernel)), (((3,), (1,)), ((), ())))
    pixels = (0, 1, 2)
    of_nine = lax.dot_general(in_float32(x), sums, ((pixels, pixels), ((), ())))
    return of_x.astype(x.dtype), _taps(of_nine).astype(kernel.dtype)


def _nine_kernels(kernel: jax.Array) -> jax.Array:
    """`[3, 3, c, n] -> [c, 9 n]`: k0, k0 + k1 + k2 and k2 of the rows, and of each of these those of the columns."""

    def three(taps: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        first, middle, last = taps
        return first, first + middle + last, last

    return jnp.concatenate([part for row in three(tuple(kernel)) for part in three(tuple(row))], axis=-1)


def _taps(nine: jax.Array) -> jax.Array:
    """`[c, 9 n] -> [3, 3, c, n]`: the transpose of `_nine_kernels`."""

    def three(parts: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        first, every, last = parts
        return first + every, every, every + last

    parts = jnp.split(nine, 9, axis=-1)
    columns = [three(parts[i : i + 3]) for i in (0, 3, 6)]
    rows = zip(*(three(column) for column in zip(*columns, strict=True)), strict=True)
    return jnp.stack([jnp.stack(row) for row in rows])


def _nine_cotangents(g: jax.Array) -> jax.Array:
    """`[b, 2 h, 2 w, n] -> [b, h, w, 9 n]`: the gradients of the nine products."""
    b, h, w, n = g.shape
    h, w = h // 2, w // 2
    pairs = _bordered(g, 2).reshape(b, h + 2, 2, w + 2, 2, n)

    def seen(i: int, j: int) -> jax.Array:
        (y, p), (left, q) = divmod(i + 2, 2), divmod(j + 2, 2)
        return pairs[:, y : y + h, p, left : left + w, q]

    def product(row: int, column: int) -> jax.Array:
        places = ((s * t, seen(i, j)) for i, s in COTANGENTS[row] for j, t in COTANGENTS[column])
        return _signed_sum(list(places))

    return jnp.concatenate([product(row, column) for row in range(3) for column in range(3)], axis=-1)


def _bordered(x: jax.Array, width: int) -> jax.Array:
    """Zeros around rows and columns."""
    edges = (width, width, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), edges, edges, (0, 0, 0)))


def _signed_sum(terms: Sequence[tuple[int, jax.Array]]) -> jax.Array:
    def add(total: jax.Array, term: tuple[int, jax.Array]) -> jax.Array:
        sign, value = term
        return total + value if sign > 0 else total - value

    ordered = sorted(terms, key=lambda term: -term[0])  # a positive one first
    return functools.reduce(add, ordered[1:], ordered[0][1])


conv_by_nine.defvjp(_forward, _backward)
