"""Pixel weights that make a network keep touching objects apart: U-Net, Ronneberger et al. 2015, arXiv 1505.04597."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxseg.losses import options
from jaxseg.ops.connected_components import connected_components
from jaxseg.ops.distance_transform import NO_TARGET
from jaxseg.ops.nearest_labels import two_nearest_labels

# Beyond this many sigmas, exp(-(d1 + d2)^2 / (2 sigma^2)) is 0 in float32.
ZERO_SIGMAS = 14.5


def border_weights(
    instances: ArrayLike,
    *,
    where: ArrayLike | None = None,
    w0: float = 10.0,
    sigma: float = 5.0,
    background_only: bool = False,
) -> jax.Array:
    """`w0 exp(-(d1 + d2)^2 / (2 sigma^2))`, large between objects that are close; add the classes' weights to it.

    Exact for any number of objects, in a time that depends on sigma and not on their number.

    Args:
      instances: integers `[*b, h, w]`, an id for each object; 0 and below is background.
      where: bool `[*b, h, w]`, the valid pixels; None: all. Objects are what is valid of them.
      w0: the largest weight.
      sigma: how far borders reach, in pixels, above 0.
      background_only: no weight inside the objects, as several ports of the paper have it.

    Returns:
      float32 `[*b, h, w]`, 0 outside `where` and in an image of fewer than two objects; d1 and d2 are the distances to
      the nearest pixel of the nearest and the second nearest object, 0 inside. With d1 = d2 = 0, 1, 2, 3, 5:
      10, 9.23116, 7.26149, 4.86752, 1.35335.

    Raises:
      TypeError: `instances` are not integers, or `where` is not bool.
      ValueError: shapes differ, no rows and columns, or w0 or sigma out of their range.

    Reference: arXiv 1505.04597, equation 2. Differences: the paper takes distances to the objects' borders, which
    inside an object differ from these, and does not say how a border is drawn.
    """
    if not (0 <= w0 < math.inf and 0 < sigma < math.inf):
        raise ValueError(f"w0 = {w0} is at least 0 and sigma = {sigma} above 0, both finite")
    instances = jnp.asarray(instances)
    where = jnp.ones(instances.shape, bool) if where is None else jnp.asarray(where)
    if where.dtype != jnp.bool_:
        raise TypeError(f"where must be bool, not {where.dtype}")
    if where.shape != instances.shape:
        raise ValueError(f"where {where.shape} and instances {instances.shape} differ in shape")
    valid = jnp.where(where, instances, 0)
    d1, _, d2, _ = two_nearest_labels(valid, within=max(1.0, ZERO_SIGMAS * sigma))
    two = where & (d2 < NO_TARGET)
    if background_only:
        two = two & (valid <= 0)
    distance = jnp.sqrt(d1.astype(jnp.float32)) + jnp.sqrt(d2.astype(jnp.float32))
    return jnp.where(two, w0 * jnp.exp(-((distance / sigma) ** 2) / 2), 0.0)


def class_map_border_weights(
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    background: int = 0,
    connectivity: int = 4,
    w0: float = 10.0,
    sigma: float = 5.0,
    background_only: bool = False,
) -> jax.Array:
    """As `border_weights`, where the objects are the connected regions of each class but the background.

    Args:
      labels: class ids `[*b, h, w]`.
      where: bool `[*b, h, w]`, the valid pixels; None: all. Void parts objects as background does.
      background: the class whose regions are no objects.
      connectivity: 4 or 8; with 8, objects that touch at a corner are one.
      w0, sigma, background_only: as in `border_weights`.

    Returns:
      float32 `[*b, h, w]`.

    Raises:
      As `border_weights` and `connected_components`.
    """
    labels = jnp.asarray(labels)
    where = jnp.ones(labels.shape, bool) if where is None else jnp.asarray(where)
    objects = connected_components(labels, connectivity=connectivity, where=where & (labels != background))
    return border_weights(objects, where=where, w0=w0, sigma=sigma, background_only=background_only)


def checked_border_options(
    key: str,
    *,
    w0: float = 10.0,
    sigma: float = 5.0,
    background: int = 0,
    connectivity: int = 4,
    background_only: bool = False,
) -> dict[str, int | float | bool]:
    """The options of `class_map_border_weights`, for a config's key.

    Raises:
      JaxsegError: one is out of its range.
    """
    sigma = options.number(f"{key}.sigma", sigma, least=1e-3)
    return {
        "w0": options.number(f"{key}.w0", w0),
        "sigma": sigma,
        "background": options.whole_number(f"{key}.background", background),
        "connectivity": options.choice(f"{key}.connectivity", connectivity, (4, 8)),
        "background_only": bool(background_only),
    }
