"""Sums over all axes but the last: what a batch norm's statistics and the gradients of its parameters are.

XLA's CPU makes a sum by a routine that reads finished arrays: products, masks and differences that are summed are
written first, and two sums read them twice. It does not know a reduction of two numbers at once, and so puts what is
summed into that one's loop, which it shares out along the axes that are left. Here these are blocks of rows, so that
there is enough to share out and an element stays in its register. Sums of blocks of columns follow, for the rounding:
one sum of all blocks rounds more often than XLA's plain sum, and a variance far from zero shows it. Two cores with
AVX-512, float32, in turns, medians of nine, milliseconds (the last line with the sums that follow, the others without):

| sums, of                                                   | plain | here |
|------------------------------------------------------------|-------|------|
| mean and variance, 3x224x224x48                            | 5.5   | 2.2  |
| mean and variance, 4x64x64x256                             | 3.7   | 1.5  |
| mean and variance, 2x32x32x2048                            | 5.7   | 1.8  |
| gradients of a rectified line, 3x224x224, 180 of 192       | 34    | 12.7 |

Blocks of 2 to 16 rows took 12 to 20 ms in the last line, of 28 and more 40 and more.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

ROWS = 8  # of a block, at most


def channel_sums(*terms: jax.Array) -> tuple[jax.Array, ...]:
    """The sum of each term over all axes but the last, in one pass over what they are made of.

    It has no derivative: it is for values and gradients that are written out.

    Args:
      terms: `[*b, c]` floating, all of one shape; float32 for float32 sums.

    Returns:
      `[c]` for each.
    """
    return tuple(lax.platform_dependent(*terms, cpu=_by_blocks, default=_plain))


def sum_of_images(x: jax.Array) -> jax.Array:
    """`[b, ...]` float32 -> `[...]`: the sum over the images as a product, since XLA's CPU is slow at a plain sum.

    3x108x324 on two cores: 0.05 ms, a plain sum 0.9.
    """
    return lax.dot_general(jnp.ones(x.shape[0], x.dtype), x, (((0,), (0,)), ((), ())), precision="highest")


def _plain(*terms: jax.Array) -> list[jax.Array]:
    return [jnp.sum(term, axis=tuple(range(term.ndim - 1))) for term in terms]


def _by_blocks(*terms: jax.Array) -> list[jax.Array]:
    """Sums of blocks along the axis that is the third from the last, of these along the next: errors stay small."""
    last = terms[0].ndim - 1
    for axis in range(max(last - 2, 0), last):
        terms = tuple(_of_blocks(terms, axis))
    return _plain(*terms)


def _of_blocks(terms: Sequence[jax.Array], axis: int) -> Sequence[jax.Array]:
    """The sums of each ROWS or fewer along an axis."""
    shape = terms[0].shape
    if 0 in shape:
        return terms
    rows = _rows(shape[axis])
    number = -(-shape[axis] // rows)
    edges = [(0, number * rows - side if i == axis else 0, 0) for i, side in enumerate(shape)]
    zeros = [jnp.zeros((), term.dtype) for term in terms]
    # Zeros that fill the last block up are not written: they are part of the loop too.
    filled = (lax.pad(term, zero, edges) for term, zero in zip(terms, zeros, strict=True))
    blocks = [term.reshape(*shape[:axis], number, rows, *shape[axis + 1 :]) for term in filled]
    return lax.reduce(blocks, zeros, _add, (axis + 1,))


def _add(left: Sequence[jax.Array], right: Sequence[jax.Array]) -> list[jax.Array]:
    return [a + b for a, b in zip(left, right, strict=True)]


def _rows(side: int) -> int:
    """Of a block: up to ROWS, at least half of that where there are so many, with the fewest to fill up."""
    return min(range(min(side, ROWS), min(side, ROWS // 2) - 1, -1), key=lambda rows: -side % rows)
