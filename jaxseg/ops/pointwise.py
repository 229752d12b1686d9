"""1x1 convolution as a matrix product, on every platform, with a kernel gradient that suits a CPU.

TPUs make the same of a 1x1 convolution and of a product. A CPU's convolution takes the whole image as its
window for the kernel gradient. Milliseconds on two cores, float32, kernel gradient:

| input, channels         | convolution | x^T g | product an image |
|-------------------------|-------------|-------|------------------|
| 4x88x88, 304 -> 256     | 800         | 124   | 56               |
| 4x176x176, 16 -> 96     | 260         | 8     | 9                |
| 4x88x88, 256 -> 11      | 35          | 17    | 5                |
| 4x22x22, 960 -> 160     | 32          | 7     | 13               |

One core, 2x32x32, c -> n: x^T g, (g^T x)^T, the same with a barrier before the outer transposition, PyTorch's:
1024 -> 256: 13.1, 18.4, 11.7, 12.2; 2048 -> 512: 66, 60, 48, 49; 1024 -> 2048: 94, 132, 112, 97.

Two cores, one product an image, x^T g and (g^T x)^T: 2x64x64, 512 -> 128: 11.2, 7.3; 2x64x64, 256 -> 21: 2.2, 0.6;
4x88x88, 256 -> 11: 10.4, 2.7; 3x224x224, 192 -> 21: 21.6, 13.7; 3x112x112, 144 -> 144: 11.4, 11.2; 4x88x88, 304 -> 256:
29, 33.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.ops.aligned import aligned_kernel_gradient
from jaxseg.ops.apart import apart
from jaxseg.ops.channel_sums import sum_of_images

# Pixels an image from which one product an image beats a single one, whose left side XLA first transposes.
LARGE_IMAGE_PX = 2048


def _product(x: jax.Array, matrix: jax.Array, axis: int, precision: Any, result: Any = jnp.float32) -> jax.Array:
    dimensions = (((x.ndim - 1,), (axis,)), ((), ()))
    y = lax.dot_general(x, matrix, dimensions, precision=precision, preferred_element_type=result)
    return y.astype(x.dtype)


def _product_here(x: jax.Array, matrix: jax.Array, axis: int, precision: Any) -> jax.Array:
    """`_product`; of 16-bit numbers on NVIDIA GPUs with both sides written before, and the result in 16 bits.

    XLA otherwise fuses a cast of the matrix and a ReLU of x into the product, which then no longer loads them straight
    to the matrix units: 16x65x65, 512 -> 2048, bfloat16, H200: 0.38 ms with both, 0.28 with the ReLU alone. A float32
    result, rounded afterwards, stays float32 where batch norm reads it (the rounding may be left out, and is), and is
    written and read at twice the size: of DeepLabV3's train step, bfloat16, 16 x 513 x 513, the program that XLA
    compiles for an H200 moves 120 GB with such products and 101 without.
    """
    product = functools.partial(_product, axis=axis, precision=precision)
    if x.dtype.itemsize != 2:
        return product(x, matrix)

    def apart(x: jax.Array, matrix: jax.Array) -> jax.Array:
        return product(*lax.optimization_barrier((x, matrix)), result=x.dtype)

    return lax.platform_dependent(x, matrix, cuda=apart, default=product)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def pointwise(x: jax.Array, matrix: jax.Array, precision: Any = None) -> jax.Array:
    """`y[..., n] = sum_m x[..., m] matrix[m, n]`, summed in float32.

    Args:
      x: `[b, h, w, c]`.
      matrix: `[c, n]` of x's dtype.
      precision: as `jax.lax.dot_general`.

    Returns:
      `[b, h, w, n]` of x's dtype.
    """
    return _product_here(x, matrix, 0, precision)


def _forward(x: jax.Array, matrix: jax.Array, precision: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product_here(x, matrix, 0, precision), (x, matrix)


def _backward(precision: Any, residuals: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, matrix = residuals
    # Or XLA's CPU makes it (batch norm's gradient) once for each of the two products, which read it in two shapes.
    g = apart(g, matrix[0, 0])
    gradient = lax.platform_dependent(
        x,
        g,
        cpu=_matrix_gradient_cpu,
        cuda=functools.partial(_matrix_gradient_cuda, precision=precision),
        default=functools.partial(_matrix_gradient, precision=precision),
    )
    return _product_here(g, matrix, 1, precision), gradient.astype(matrix.dtype)


def _matrix_gradient(x: jax.Array, g: jax.Array, *, precision: Any = None) -> jax.Array:
    """`[c, n]` float32: one product over all pixels."""
    axes = (tuple(range(x.ndim - 1)),) * 2
    return lax.dot_general(x, g, (axes, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def _matrix_gradient_cuda(x: jax.Array, g: jax.Array, *, precision: Any = None) -> jax.Array:
    """As `_matrix_gradient`; of 16-bit numbers as a convolution's kernel gradient, which cuDNN has a routine for.

    XLA splits the long sum of a product into parts and first copies both sides, padded to a number that they divide.
    H200, bfloat16, ms, product and convolution: 16x65x65, 512 -> 2048: 0.406, 0.220; 16x513x513, 96 -> 96: 1.363,
    0.388; 16x129x129, 256 -> 64: 0.168, 0.080; 16x33x33, 960 -> 160: 0.074, 0.081.
    """
    if x.dtype.itemsize != 2:
        return _matrix_gradient(x, g, precision=precision)
    kernel = jnp.zeros((1, 1, x.shape[-1], g.shape[-1]), x.dtype)
    return aligned_kernel_gradient(x, kernel, g, precision=precision)[0, 0].astype(jnp.float32)


def _matrix_gradient_cpu(x: jax.Array, g: jax.Array) -> jax.Array:
    """As `_matrix_gradient`, without the transposed copies: XLA's CPU writes a product's left side transposed."""
    b, h, w, c = x.shape
    n = g.shape[-1]
    if h * w < LARGE_IMAGE_PX:
        if c <= n:
            return _matrix_gradient(x, g)
        # Without this barrier XLA turns the product's sides round again, and copies the wider one transposed.
        return lax.optimization_barrier(_matrix_gradient(g, x)).T
    dimensions = (((1,), (1,)), ((0,), (0,)))
    left, right = x.reshape(b, h * w, c), g.reshape(b, h * w, n)
    if 2 * n <= c:
        swapped = lax.dot_general(right, left, dimensions, preferred_element_type=jnp.float32)
        return lax.optimization_barrier(sum_of_images(swapped)).T
    return sum_of_images(lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32))


pointwise.defvjp(_forward, _backward)
