"""Binary erosion and dilation, and the boundaries of masks and label maps, by shifts of whole images.

What lies beyond the image or outside `where` is neither foreground nor background: it never erodes, dilates or makes
a boundary, so that padding an image with void changes nothing.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

STRUCTURES = ("square", "cross", "diamond")
# (dy, dx); the first four share a side.
NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))


def dilate(mask: ArrayLike, radius: int = 1, *, structure: str = "square", where: ArrayLike | None = None) -> jax.Array:
    """Whether any pixel under the structuring element, centred at each pixel, is in the mask.

    Args:
      mask: bool `[*b, h, w]`.
      radius: r, 0 or more pixels.
      structure: `square`: |dy| <= r and |dx| <= r (OpenCV's MORPH_RECT, 2 r + 1 a side; 8-connectivity r times);
        `diamond`: |dy| + |dx| <= r (SciPy's default, `iterations=r`; 4-connectivity r times); `cross`: the r pixels in
        each of the four directions (OpenCV's MORPH_CROSS).
      where: bool `[*b, h, w]`, the valid pixels; None: all. Others do not dilate, and are False in the result.

    Returns:
      bool `[*b, h, w]`. A single pixel dilated by a square of radius 1 is 3 x 3 pixels.

    Raises:
      TypeError: `mask` or `where` is not bool.
      ValueError: shapes differ, a negative radius, or an unknown structure.
    """
    mask, where = _checked(mask, where)
    inside = mask if where is None else mask & where
    result = _spread(inside, radius, structure)
    return result if where is None else result & where


def erode(
    mask: ArrayLike,
    radius: int = 1,
    *,
    structure: str = "square",
    where: ArrayLike | None = None,
    beyond: bool = True,
) -> jax.Array:
    """Whether all pixels under the structuring element, centred at each pixel, are in the mask.

    Args:
      mask: bool `[*b, h, w]`.
      radius: as in `dilate`.
      structure: as in `dilate`.
      where: bool `[*b, h, w]`, the valid pixels; None: all. Others do not erode, and are False in the result.
      beyond: whether what lies beyond the image counts as in the mask: True as in OpenCV and scikit-image, False as in
        SciPy (`border_value=0`), where the image's border erodes.

    Returns:
      bool `[*b, h, w]`.

    Raises:
      As `dilate`.
    """
    mask, where = _checked(mask, where)
    background = ~mask if where is None else ~mask & where
    eroded = _spread(background, radius, structure)
    if not beyond:
        eroded = eroded | _near_border(mask.shape, radius)
    result = mask & ~eroded
    return result if where is None else result & where


def boundary(
    labels: ArrayLike,
    *,
    connectivity: int = 4,
    where: ArrayLike | None = None,
    beyond: bool = False,
) -> jax.Array:
    """The inner boundary: pixels with a valid neighbour of another label.

    Of a mask (bool), only its own pixels; of a label map, the pixels on both sides of each border (scikit-image's mode
    `thick`). Neighbours outside `where` and beyond the image have no label and make no boundary.

    Args:
      labels: bool or integers `[*b, h, w]`.
      connectivity: 4 or 8 neighbours.
      where: bool `[*b, h, w]`, the valid pixels; None: all.
      beyond: whether what lies beyond the image counts as another label, so that a mask that touches the image's border
        has a boundary there: `mask ^ scipy.ndimage.binary_erosion(mask)`, as in boundary IoU and surface distances.

    Returns:
      bool `[*b, h, w]`, False outside `where`. The row (0, 0, 1, 1) gives (0, 1, 1, 0).

    Raises:
      TypeError: `labels` are neither bool nor integers, or `where` is not bool.
      ValueError: shapes differ, or a connectivity other than 4 and 8.
    """
    labels = jnp.asarray(labels)
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity = {connectivity!r} is not 4 or 8")
    if labels.dtype == jnp.bool_:
        structure = "square" if connectivity == 8 else "diamond"
        return _inside(labels, where) & ~erode(labels, structure=structure, where=where, beyond=not beyond)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be bool or integers, not {labels.dtype}")
    _, where = _checked(jnp.zeros(labels.shape, bool), where)
    valid = jnp.ones(labels.shape, bool) if where is None else where
    found = _near_border(labels.shape, 1) if beyond else jnp.zeros(labels.shape, bool)
    for dy, dx in NEIGHBOURS[:connectivity]:
        differs = (shift(labels, dy, dx, 0) != labels) & shift(valid, dy, dx, False)
        found = found | differs
    return found & valid


def shift(image: jax.Array, dy: int, dx: int, fill: bool | int | float) -> jax.Array:
    """`[*b, h, w]` moved down by `dy` and right by `dx`, `fill` where nothing came from."""
    for axis, by in ((image.ndim - 2, dy), (image.ndim - 1, dx)):
        size = image.shape[axis]
        by = max(-size, min(size, by))
        if by:
            kept = lax.slice_in_dim(image, max(0, -by), size - max(0, by), axis=axis)
            widths = [(0, 0, 0)] * image.ndim
            widths[axis] = (max(0, by), max(0, -by), 0)
            image = lax.pad(kept, jnp.asarray(fill, image.dtype), widths)
    return image


def _checked(mask: ArrayLike, where: ArrayLike | None) -> tuple[jax.Array, jax.Array | None]:
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"mask must be bool, not {mask.dtype}")
    if mask.ndim < 2:
        raise ValueError(f"mask {mask.shape} has no rows and columns")
    if where is None:
        return mask, None
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_:
        raise TypeError(f"where must be bool, not {where.dtype}")
    if where.shape != mask.shape:
        raise ValueError(f"where {where.shape} and the image {mask.shape} differ in shape")
    return mask, where


def _inside(mask: jax.Array, where: ArrayLike | None) -> jax.Array:
    return mask if where is None else mask & jnp.asarray(where)


def _spread(mask: jax.Array, radius: int, structure: str) -> jax.Array:
    """Dilation with nothing beyond the image."""
    if structure not in STRUCTURES:
        raise ValueError(f"structure = {structure!r} is not one of {', '.join(STRUCTURES)}")
    if radius < 0:
        raise ValueError(f"radius = {radius} is negative")
    if structure == "square":
        return _along(_along(mask, radius, 1), radius, 2)
    if structure == "cross":
        return _along(mask, radius, 1) | _along(mask, radius, 2)

    def grow(_: int, mask: jax.Array) -> jax.Array:
        return functools.reduce(jnp.logical_or, [shift(mask, dy, dx, False) for dy, dx in NEIGHBOURS[:4]], mask)

    return lax.fori_loop(0, radius, grow, mask)


def _along(mask: jax.Array, radius: int, axis: int) -> jax.Array:
    """Dilation along rows (axis 2) or columns (axis 1) by `radius`, in steps that double what is covered."""
    covered, left = 0, min(radius, mask.shape[axis - 3])
    while covered < left:
        # Not 2 covered + 1, whose pixel in between may lie beyond the image.
        by = min(covered + 1, left - covered)
        move = (by, 0) if axis == 1 else (0, by)
        mask = mask | shift(mask, *move, False) | shift(mask, -move[0], -move[1], False)
        covered += by
    return mask


def _near_border(shape: tuple[int, ...], radius: int) -> jax.Array:
    """Pixels whose structuring element of this radius reaches beyond the image: its arms do in every structure."""
    h, w = shape[-2:]
    y, x = (
        lax.broadcasted_iota(jnp.int32, shape, len(shape) - 2),
        lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1),
    )
    return (y < radius) | (y >= h - radius) | (x < radius) | (x >= w - radius)
