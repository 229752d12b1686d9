"""Hausdorff loss by convolutions with discs (Karimi & Salcudean 2019, arXiv 1904.10030)."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxseg.core.errors import JaxsegError
from jaxseg.losses import options
from jaxseg.losses.class_maps import Classes, class_maps, each_class, map_loss
from jaxseg.losses.reduction import Loss

RADII = (3, 6, 9, 12, 15, 18)


def build(
    *,
    alpha: float = 2.0,
    radii: Sequence[int] = RADII,
    classes: Classes = "all",
    activation: str = "softmax",
    multi_hot: bool = False,
) -> Loss:
    """The loss `hausdorff_convolution` of a config: the mean over valid pixels and classes.

    Args:
      alpha: how strongly large radii count, at least 0.
      radii: of the discs, in pixels, each at least 1, none twice.
      classes: `all`, or class ids, for example all but the background.
      activation: `softmax`, or `sigmoid` for classes that may overlap.
      multi_hot: labels are 0 and 1 `[*b, h, w, c]`, with `sigmoid`; otherwise class ids `[*b, h, w]`.

    Raises:
      JaxsegError: an option is out of its range.
    """
    name = "hausdorff_convolution"
    if isinstance(radii, str) or not len(radii):
        raise JaxsegError(f"config.loss.{name}.radii = {radii!r}; it takes at least one radius in pixels.")
    radii = tuple(options.whole_number(f"{name}.radii", r, least=1) for r in radii)
    if len(set(radii)) < len(radii):
        raise JaxsegError(f"config.loss.{name}.radii = {radii}: each radius once.")
    return map_loss(
        name,
        hausdorff_convolution,
        alpha=options.number(f"{name}.alpha", alpha),
        radii=radii,
        classes=classes,
        activation=activation,
        multi_hot=multi_hot,
    )


def hausdorff_convolution(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    alpha: float = 2.0,
    radii: Sequence[int] = RADII,
    classes: Classes = "all",
    activation: str = "softmax",
) -> jax.Array:
    """Errors at pixels around which a disc lies on one side of an outline, weighted by its radius; per pixel and class.

    `sum over r of r^alpha (p - y)^2 ((f(B_r (1 - y)) + f(B_r p)) p + (f(B_r y) + f(B_r (1 - p))) y)`, where `B_r` is
    the mean over a disc of radius r and `f(x)` is x where it is at least 0.5, else 0. A pixel that is predicted but
    not true has a distance of at least r to the truth where the whole disc lies outside of it.

    Args:
      logits: float `[*b, h, w, c]`.
      labels: integers `[*b, h, w]`; class ids inside `where`, anything outside.
      where: bool `[*b, h, w]`, the pixels that count; None: all. Others, and what is beyond the image, are neither in a
        mask nor in its complement, so that they count as 0 in both means.
      alpha: the power, at least 0.
      radii: of the discs, in pixels: all offsets with dy^2 + dx^2 <= r^2.
      classes: `all`, or k class ids.
      activation: `softmax` or `sigmoid`; with `sigmoid`, labels and `where` may be `[*b, h, w, c]`.

    Returns:
      float32 `[*b, h, w, k]`, 0 outside `where`. One pixel alone with y = 0 and p = 1 and radius 1: each mean is 0.2
      and f leaves nothing, so that the value is 0.

    Raises:
      TypeError, ValueError: see `checked_inputs`; an id that the logits do not have.

    Reference: arXiv 1904.10030, equation 14. There is no public code of the authors.
    """
    p, y, where = class_maps(logits, labels, where, classes, activation)

    radii = tuple(radii)

    def one(p: jax.Array, y: jax.Array, where: jax.Array) -> jax.Array:
        constants = lax.stop_gradient(jnp.stack([y, where.astype(p.dtype)], axis=-3))
        total = jnp.zeros_like(p)
        for radius, inside_p, means in zip(radii, disc_means(p, radii), disc_means(constants, radii), strict=True):
            inside_y, any_at_all = means[..., 0, :, :], means[..., 1, :, :]
            predicted = _soft_threshold(any_at_all - inside_y) + _soft_threshold(inside_p)
            true = _soft_threshold(inside_y) + _soft_threshold(any_at_all - inside_p)
            total = total + float(radius) ** alpha * (predicted * p + true * y)
        return jnp.where(where, (p - y) ** 2 * total, 0.0)

    return each_class(one, where, p, y)


def _soft_threshold(x: jax.Array) -> jax.Array:
    return jnp.where(x < 0.5, 0.0, x)  # keeps NaN, which `x >= 0.5` would drop


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def disc_means(image: jax.Array, radii: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """The mean over the disc of each radius around each pixel, with zeros beyond the image; each `[*b, h, w]`.

    Rows of a disc are sums along rows, and the longer ones extend the shorter ones: a disc of radius r costs 2 r + 1
    additions a pixel in place of pi r^2. A disc is symmetric, so that the gradient is the same sum of the upstream one.
    """
    reach = max(radii)
    half_widths = {r: [math.isqrt(r * r - dy * dy) for dy in range(r + 1)] for r in radii}
    runs = _centred_sums(image, sorted({half for halves in half_widths.values() for half in halves}), reach)
    h = image.shape[-2]
    result = []
    for radius, halves in half_widths.items():
        rows = [
            lax.slice_in_dim(runs[halves[abs(dy)]], reach + dy, reach + dy + h, axis=image.ndim - 2)
            for dy in range(-radius, radius + 1)
        ]
        pixels = 2 * sum(2 * half + 1 for half in halves) - (2 * radius + 1)
        # Otherwise the sums of all radii run in one loop, which no cache holds.
        result.append(lax.optimization_barrier(functools.reduce(jnp.add, rows) * (1.0 / pixels)))
    return tuple(result)


def _centred_sums(image: jax.Array, half_widths: Sequence[int], margin: int) -> dict[int, jax.Array]:
    """Sums over `2 half + 1` pixels of a row, for each half width in ascending order; `margin` rows of 0 on both sides.

    Padded once: slices of a padded image vectorise, each shift with its own padding asks at every pixel.
    """
    w, axis = image.shape[-1], image.ndim - 1
    padded = jnp.pad(image, [(0, 0)] * (image.ndim - 2) + [(margin, margin)] * 2)
    found: dict[int, jax.Array] = {}
    total, reach = lax.slice_in_dim(padded, margin, margin + w, axis=axis), 0
    for half in half_widths:
        while reach < half:
            reach += 1
            left, right = (lax.slice_in_dim(padded, margin + d, margin + d + w, axis=axis) for d in (-reach, reach))
            total = total + (left + right)
        # Otherwise each of their readers would add them up anew.
        total = lax.optimization_barrier(total)
        found[half] = total
    return found


def _disc_means_forward(image: jax.Array, radii: tuple[int, ...]) -> tuple[tuple[jax.Array, ...], None]:
    return disc_means(image, radii), None


def _disc_means_backward(radii: tuple[int, ...], _: None, upstream: tuple[jax.Array, ...]) -> tuple[jax.Array]:
    parts = [disc_means(g, (radius,))[0] for g, radius in zip(upstream, radii, strict=True)]
    return (functools.reduce(jnp.add, parts),)


disc_means.defvjp(_disc_means_forward, _disc_means_backward)
