"""Sums over the pixels of an enlarged image, block of rows by block of rows: the whole of it is never in memory."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxseg.ops.resize import ALIGNMENTS, can_gather, gathered, linear_map, source_positions

Pixels = Any  # pytree of arrays [*b, height, width]
OfBlock = Callable[[jax.Array, Pixels], Any]


@dataclasses.dataclass(frozen=True)
class RowBlocks:
    """A bilinear enlargement of `[*b, h, w, c]`, cut into blocks of output rows; it is `ops.resize.resize`, row by row.

    The last block ends with the last row, so that blocks are all of one height; where the height does not divide, its
    first rows were in the block before and are masked where they would count twice.

    Attributes:
      source: (h, w) of what is enlarged.
      size: (height, width) of the result.
      rows: height of a block, at least 1; more than the height is one block.
      alignment: as in `ops.resize`.
      grid: (height, width) that the alignment is meant for, where that is not `size`: the result is its upper left, or
        goes on with its last row and column (`ops.zoom`). () for `size`.

    Raises:
      ValueError: an unknown alignment, an empty image or size, or no rows.
    """

    source: tuple[int, int]
    size: tuple[int, int]
    rows: int
    alignment: str
    grid: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.alignment not in ALIGNMENTS:
            raise ValueError(f"alignment is one of {ALIGNMENTS}, not {self.alignment!r}")
        if min(*self.source, *self.size, self.rows, *(self.grid or (1,))) < 1:
            raise ValueError(f"row blocks need pixels and rows: {self}")

    @property
    def height(self) -> int:
        """Rows of a block."""
        return min(self.rows, self.size[0])

    @property
    def starts(self) -> np.ndarray:
        """The first row of each block, int32 `[blocks]`."""
        blocks = math.ceil(self.size[0] / self.height)
        return np.minimum(np.arange(blocks) * self.height, self.size[0] - self.height).astype(np.int32)

    @property
    def same(self) -> bool:
        """Whether there is nothing to enlarge."""
        return self.source == self.size and self.grid in ((), self.size)

    def neighbours(self, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lower index, upper index and the upper one's weight, for each row (axis 0) or column (axis 1)."""
        length, size = self.source[axis], self.size[axis]
        grid = self.grid[axis] if self.grid else size
        on_grid = np.minimum(np.arange(size), grid - 1)
        position = np.clip(source_positions(length, grid, alignment=self.alignment)[on_grid], 0, length - 1)
        low = np.floor(position).astype(np.int32)
        return low, np.minimum(low + 1, length - 1), (position - low).astype(np.float32)

    def windows(self) -> tuple[int, dict[str, Any]]:
        """Source rows that a block needs, and per block: first such row, first output row, new rows, row tables."""
        starts = self.starts
        rows = starts[:, None] + np.arange(self.height, dtype=np.int32)
        new = rows >= (np.arange(len(starts), dtype=np.int32) * self.height)[:, None]
        if self.same:
            return self.height, {"start": starts, "first": starts, "new": new}
        low, high, weight = (table[rows] for table in self.neighbours(0))
        window = int((high[:, -1] - low[:, 0]).max()) + 1
        first = np.minimum(low[:, 0], self.source[0] - window).astype(np.int32)
        tables = {"low": low - first[:, None], "high": high - first[:, None], "weight": weight}
        return window, {"start": starts, "first": first, "new": new, **tables}


def row_block(plan: RowBlocks, x: jax.Array, tables: dict[str, jax.Array]) -> jax.Array:
    """The enlarged rows `[*b, rows, width, c]` of one block, from its window of source rows `[*b, window, w, c]`."""
    if plan.same:
        return x
    flat = x.reshape(-1, *x.shape[-3:]).astype(jnp.float32)
    y = _enlarge(flat, tables["low"], tables["high"], tables["weight"], plan)
    return y.astype(x.dtype).reshape(*x.shape[:-3], *y.shape[1:])


def sum_over_rows(function: OfBlock, plan: RowBlocks, x: jax.Array, pixels: Pixels) -> Any:
    """`sum over blocks of function(enlarged rows, pixels there)`; the backward pass enlarges each block anew.

    Equal to `function(resize(x), pixels)` for what adds up over pixels, with the gradient by `x`. Memory: `x`, its
    gradient, and what the function needs for one block.

    Args:
      function: `(values [*b, rows, width, c], pixels [*b, rows, width]) -> pytree of floats` that add up over rows.
        `pixels["where"]` is False in rows that another block counts: what lies outside of it must be left out. It
        holds no traced arrays but its arguments.
      plan: the enlargement and its blocks.
      x: float `[*b, h, w, c]`.
      pixels: a dict of arrays `[*b, height, width]`, bool `where` among them; no gradient runs through them.

    Returns:
      What the function returns, summed.

    Raises:
      ValueError: shapes that are not the plan's.
    """
    _check(plan, x, pixels)
    return _sum_over_rows(function, plan, x, pixels)


def map_rows(function: OfBlock, plan: RowBlocks, x: jax.Array, pixels: Pixels) -> Any:
    """`function(enlarged, pixels)` with a value per pixel, `[*b, height, width]`, by blocks; it has no gradient.

    Arguments and errors as in `sum_over_rows`, but `pixels["where"]` is whole in every block, and the function's arrays
    are `[*b, rows, width]`.
    """
    _check(plan, x, pixels)
    x = lax.stop_gradient(x)
    window, tables = plan.windows()

    def block(table: dict[str, jax.Array]) -> Any:
        own = _rows_of(pixels, table["start"], plan.height)
        return function(row_block(plan, _window(x, table["first"], window), table), own)

    def write(whole: Any, table: dict[str, jax.Array]) -> tuple[Any, None]:
        put = lambda a, b: lax.dynamic_update_slice_in_dim(a, b, table["start"], axis=a.ndim - 2)  # noqa: E731
        return jax.tree.map(put, whole, block(table)), None

    shapes = jax.eval_shape(block, jax.tree.map(lambda t: t[0], tables))
    empty = jax.tree.map(lambda s: jnp.zeros((*s.shape[:-2], *plan.size), s.dtype), shapes)
    return lax.scan(write, empty, tables)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum_over_rows(function: OfBlock, plan: RowBlocks, x: jax.Array, pixels: Pixels) -> Any:
    window, tables = plan.windows()

    def block(table: dict[str, jax.Array]) -> Any:
        return function(row_block(plan, _window(x, table["first"], window), table), _new(pixels, plan, table))

    def add(sums: Any, table: dict[str, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, block(table)), None

    shapes = jax.eval_shape(block, jax.tree.map(lambda t: t[0], tables))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return lax.scan(add, zeros, tables)[0]


def _sum_forward(function: OfBlock, plan: RowBlocks, x: jax.Array, pixels: Pixels) -> tuple[Any, tuple]:
    return _sum_over_rows(function, plan, x, pixels), (x, pixels)


def _sum_backward(function: OfBlock, plan: RowBlocks, residuals: tuple, upstream: Any) -> tuple[jax.Array, None]:
    """Written out because the automatic one adds an array of the size of `x` for each block, not the window's rows."""
    x, pixels = residuals
    window, tables = plan.windows()

    def add(gradient: jax.Array, table: dict[str, jax.Array]) -> tuple[jax.Array, None]:
        own = _new(pixels, plan, table)
        of_window = lambda rows: function(row_block(plan, rows, table), own)  # noqa: E731
        slope = jax.vjp(of_window, _window(x, table["first"], window))[1](upstream)[0]
        there = _window(gradient, table["first"], window) + slope.astype(gradient.dtype)
        return lax.dynamic_update_slice_in_dim(gradient, there, table["first"], axis=x.ndim - 3), None

    start = jnp.zeros(x.shape, x.dtype if x.dtype.itemsize > 4 else jnp.float32)
    return lax.scan(add, start, tables)[0].astype(x.dtype), None


_sum_over_rows.defvjp(_sum_forward, _sum_backward)


def _check(plan: RowBlocks, x: jax.Array, pixels: Pixels) -> None:
    shapes = {leaf.shape for leaf in jax.tree.leaves(pixels)}
    if x.ndim < 3 or x.shape[-3:-1] != plan.source or shapes != {(*x.shape[:-3], *plan.size)}:
        raise ValueError(f"values {x.shape} and pixels {sorted(shapes)} do not fit the plan {plan}")


def _window(x: jax.Array, first: jax.Array, window: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, first, window, axis=x.ndim - 3)


def _rows_of(pixels: Pixels, start: jax.Array, rows: int) -> Pixels:
    return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, start, rows, axis=a.ndim - 2), pixels)


def _new(pixels: Pixels, plan: RowBlocks, table: dict[str, jax.Array]) -> Pixels:
    """The block's pixels, with those rows taken out of `where` that the block before has counted."""
    own = _rows_of(pixels, table["start"], plan.height)
    return own | {"where": own["where"] & table["new"][:, None]}


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _enlarge(x: jax.Array, low: jax.Array, high: jax.Array, weight: jax.Array, plan: RowBlocks) -> jax.Array:
    """The arithmetic of `ops.resize`: gathers on a CPU, products elsewhere and for the gradient's rows."""

    def gather(x: jax.Array, low: jax.Array, high: jax.Array, weight: jax.Array) -> jax.Array:
        upper = jnp.take(x, high, axis=1, mode="clip")
        rows = _mix(jnp.take(x, low, axis=1, mode="clip"), upper, weight[:, None, None])
        left, right, share = plan.neighbours(1)
        return _mix(rows[:, :, left], rows[:, :, right], share[:, None])

    def products(x: jax.Array, low: jax.Array, high: jax.Array, weight: jax.Array) -> jax.Array:
        rows = jnp.einsum("on,bnwc->bowc", _matrix(low, high, weight, x.shape[1]), x, precision="highest")
        columns = linear_map(plan.source[1], *plan.neighbours(1))
        return jnp.einsum("pw,bowc->bopc", columns, rows, precision="highest")

    return lax.platform_dependent(x, low, high, weight, cpu=gather, default=products)


def _enlarge_forward(
    x: jax.Array, low: jax.Array, high: jax.Array, weight: jax.Array, plan: RowBlocks
) -> tuple[jax.Array, tuple]:
    return _enlarge(x, low, high, weight, plan), (_matrix(low, high, weight, x.shape[1]),)


def _enlarge_backward(plan: RowBlocks, residuals: tuple, g: jax.Array) -> tuple:
    # Rows first: a window has a few rows where the block has many.
    rows = jnp.einsum("on,bopc->bnpc", residuals[0], g, precision="highest")
    columns = linear_map(plan.source[1], *plan.neighbours(1))

    def products(rows: jax.Array) -> jax.Array:
        return jnp.einsum("pw,bnpc->bnwc", columns, rows, precision="highest")

    if not can_gather(columns):
        return products(rows), None, None, None
    x = lax.platform_dependent(rows, cpu=lambda rows: gathered(rows, columns, 2), default=products)
    return x, None, None, None


_enlarge.defvjp(_enlarge_forward, _enlarge_backward)


def _mix(low: jax.Array, high: jax.Array, weight: ArrayLike) -> jax.Array:
    return low * (1 - weight) + high * weight


def _matrix(low: ArrayLike, high: ArrayLike, weight: ArrayLike, length: int) -> jax.Array:
    """The linear map of two neighbours and a weight as a matrix `[outputs, length]`."""
    source = jnp.arange(length, dtype=jnp.int32)
    low, high, weight = (jnp.asarray(a)[:, None] for a in (low, high, weight))
    return jnp.where(source == low, 1 - weight, 0.0) + jnp.where(source == high, weight, 0.0)
