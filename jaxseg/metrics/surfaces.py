"""What Hausdorff and surface distances share: the surfaces of every class, the loop over classes, exact sums."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.core.errors import JaxsegError
from jaxseg.metrics.boundaries import VOID, Outside, pad_images

OneEmpty = Literal["inf", "diagonal", "skip"]
FRACTION_BITS = 24  # of a distance's part behind the point, in the exact sums


def checked_spacing(spacing: Sequence[float] | float, *, key: str) -> tuple[float, tuple[float, float] | None]:
    """The unit of distance, and the spacing of rows and columns in it; None where both are that unit.

    Args:
      spacing: (between rows, between columns), or one number for both.
      key: names the config's metric in the error.

    Raises:
      JaxsegError: the spacing is not one or two positive numbers.
    """
    pair = tuple(float(s) for s in spacing) if isinstance(spacing, Sequence) else (float(spacing),) * 2
    if len(pair) != 2 or not all(0 < s < math.inf for s in pair):
        raise JaxsegError(f"{key}.spacing = {spacing} is not one or two positive numbers (rows, columns).")
    unit = min(pair)
    return unit, None if pair[0] == pair[1] else (pair[0] / unit, pair[1] / unit)


def checked_one_empty(one_empty: OneEmpty, *, key: str) -> OneEmpty:
    """`one_empty` as it is; raises JaxsegError, which names `key`, unless it is a known one."""
    if one_empty not in ("inf", "diagonal", "skip"):
        raise JaxsegError(f"{key}.one_empty = {one_empty!r} is neither 'inf' nor 'diagonal' nor 'skip'.")
    return one_empty


def surfels(classes: jax.Array, wanted: jax.Array, *, outside: Outside) -> jax.Array:
    """The contour elements of one class at the corners between pixels, by kind, int32 `[3, b, h + 1, w + 1]`.

    Each corner has a code from its 2 x 2 pixels. Two equal rows of pixels across from each other make a horizontal
    element, two equal columns a vertical one, one pixel against three a diagonal one, a chessboard two diagonal ones.

    Args:
      classes: a map of `boundaries.label_maps`, `[b, h, w]`.
      wanted: the class of each image, `[b]`.
      outside: `ignore`: no element at a corner of a void pixel or of the image's edge; `background`: these are another
        class.

    Returns:
      The number of horizontal, vertical and diagonal elements at each corner.

    Reference: Nikolov et al., arXiv 1809.04430, and DeepMind's surface-distance.
    """
    padded = pad_images(classes, 1, VOID)
    corners = (padded[:, :-1, :-1], padded[:, :-1, 1:], padded[:, 1:, :-1], padded[:, 1:, 1:])
    upper_left, upper_right, lower_left, lower_right = (x == wanted[:, None, None] for x in corners)
    whole = jnp.ones(upper_left.shape, bool)
    if outside == "ignore":
        for x in corners:
            whole &= x != VOID
    across, down = upper_left == upper_right, upper_left == lower_left
    horizontal = across & (lower_left == lower_right) & (upper_left != lower_left)
    vertical = down & (upper_right == lower_right) & (upper_left != upper_right)
    chessboard = (upper_left == lower_right) & (upper_right == lower_left) & (upper_left != upper_right)
    odd = upper_left ^ upper_right ^ lower_left ^ lower_right
    kinds = jnp.stack([horizontal, vertical, odd | chessboard]).astype(jnp.int32)
    kinds = kinds.at[2].add(chessboard.astype(jnp.int32))
    return jnp.where(whole, kinds, 0)


def for_classes(present: jax.Array, measure: Callable[[jax.Array], Any]) -> Any:
    """Measures the classes that each image has, one class of every image at a time.

    The loop ends when the image with the most classes is done, so that 150 classes cost what an image has of them.

    Args:
      present: bool `[b, C]`.
      measure: takes a class of each image, int16 `[b]`, to a tree of integers `[b, ...]`.

    Returns:
      The tree with entries `[b, C, ...]`, 0 for the classes that are not present.
    """
    images, num_classes = present.shape
    rank = jnp.cumsum(present, axis=-1, dtype=jnp.int32)
    number = rank[:, -1]
    ids = jnp.arange(num_classes, dtype=jnp.int16)
    shapes = jax.eval_shape(measure, jax.ShapeDtypeStruct((images,), jnp.int16))
    start = jax.tree.map(lambda s: jnp.zeros((images, num_classes, *s.shape[1:]), s.dtype), shapes)

    def unfinished(state: tuple[jax.Array, Any]) -> jax.Array:
        return state[0] < jnp.max(number, initial=0)

    def add(state: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        k, results = state
        # Images with fewer classes measure class 0 once more, to no effect.
        chosen = jnp.argmax((rank == k + 1) & present, axis=-1).astype(jnp.int16)
        here = (ids == chosen[:, None]) & (k < number)[:, None]

        def put(result: jax.Array, value: jax.Array) -> jax.Array:
            return jnp.where(here.reshape(*here.shape, *[1] * (value.ndim - 1)), value[:, None], result)

        return k + 1, jax.tree.map(put, results, measure(chosen))

    return jax.lax.while_loop(unfinished, add, (jnp.int32(0), start))[1]


def fixed_point(squared: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Distances as whole part and part behind the point in units of `2^-FRACTION_BITS`, int32 both.

    Args:
      squared: int32 or float32 squared distances below 2^30.
    """
    if not jnp.issubdtype(squared.dtype, jnp.integer):
        root = jnp.minimum(jnp.sqrt(squared), 2.0**15)
        whole = jnp.floor(root)
        return whole.astype(jnp.int32), jnp.round((root - whole) * 2.0**FRACTION_BITS).astype(jnp.int32)
    root = jnp.sqrt(squared.astype(jnp.float32))
    whole = root.astype(jnp.int32)
    # float32 roots of squares near 2^30 may fall on the wrong side of a whole number.
    whole = jnp.where(whole * whole > squared, whole - 1, whole)
    whole = jnp.where((whole + 1) * (whole + 1) <= squared, whole + 1, whole)
    # sqrt(n) - i = (n - i^2) / (sqrt(n) + i), which loses no digits to a difference.
    rest = (squared - whole * whole).astype(jnp.float32) / jnp.maximum(root + whole.astype(jnp.float32), 1.0)
    return whole, jnp.round(rest * 2.0**FRACTION_BITS).astype(jnp.int32)


def exact_sum(values: jax.Array) -> jax.Array:
    """The sum over rows and columns of int32 in 0..2^30-1 as four int32 parts, `[..., 4]`, for `sum_of_parts`.

    Sums of parts of 15 bits over up to 2^16 columns and then rows stay below 2^31, and have no order.
    """

    def split(part: jax.Array) -> tuple[jax.Array, jax.Array]:
        row = jnp.sum(part, axis=-1, dtype=jnp.int32)
        return jnp.sum(row & 0x7FFF, axis=-1, dtype=jnp.int32), jnp.sum(row >> 15, axis=-1, dtype=jnp.int32)

    return jnp.stack([*split(values & 0x7FFF), *split(values >> 15)], axis=-1)


def sum_of_parts(parts: np.ndarray) -> np.ndarray:
    """int64 `[...]` of the parts `[..., 4]` of `exact_sum`."""
    a, b, c, d = np.moveaxis(parts.astype(np.int64), -1, 0)
    return a + ((b + c) << 15) + (d << 30)


def undefined_distances(
    values: np.ndarray,
    there: np.ndarray,
    found: np.ndarray,
    size: np.ndarray,
    spacing: tuple[float, float],
    one_empty: str,
) -> np.ndarray:
    """Puts what the convention says where a class has no surface in one of the maps, NaN where it has none in both.

    Args:
      values: float64 `[n, C]`.
      there: bool `[n, C]`, whether the ground truth has a surface.
      found: bool `[n, C]`, whether the prediction has one.
      size: integers `[n, 2]`, height and width of each image.
      spacing: of rows and columns.
      one_empty: `inf`, `diagonal` (the image's, in the units of the spacing) or `skip` (NaN).
    """
    diagonal = np.hypot(size[:, 0] * spacing[0], size[:, 1] * spacing[1])[:, None]
    penalty: Any = {"inf": np.inf, "diagonal": diagonal, "skip": np.nan}[one_empty]
    return np.where(there & found, values, np.where(there | found, penalty, np.nan))
