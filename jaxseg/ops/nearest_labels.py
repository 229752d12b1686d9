"""Distances to the nearest and to the second nearest of any number of labelled objects, exact, in one pass for all."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxseg.ops.distance_transform import NO_TARGET

# Rows above and below that one step looks at.
ROWS_A_STEP = 4

# Distance or its square, and label, of the nearest label and of the nearest other one; label 0: there is none.
Nearest = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def two_nearest_labels(labels: ArrayLike, *, within: float = math.inf) -> Nearest:
    """The squared distances to the nearest pixel of any label, and to the nearest pixel of any other label.

    A pixel's two nearest labels within its row come from two scans; then rows above and below are looked at in turn,
    the nearest first, each with its own two nearest labels, which is enough: of a third label in that row, two others
    are nearer. The search ends where rows are farther than every second label, or than `within`.

    Args:
      labels: integers `[*b, h, w]`; 0 and below is background.
      within: where the second nearest label is farther than this, its distance may come out larger than it is (never
        smaller or below `within`); so may the nearest one's where that is farther. It bounds the time.

    Returns:
      `(d1^2, label, d2^2, other label)`, each int32 `[*b, h, w]`; `NO_TARGET` (2^30) and label 0 where there is none.
      The row (5, 0, 0, 7) gives d1^2 (0, 1, 1, 0), labels (5, 5, 7, 7), d2^2 (9, 4, 4, 9), others (7, 7, 5, 5).

    Raises:
      TypeError: `labels` are not integers.
      ValueError: no rows and columns, too large an image, or `within` is not above 0.
    """
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, not {labels.dtype}")
    if labels.ndim < 2:
        raise ValueError(f"labels {labels.shape} have no rows and columns")
    if not within > 0:
        raise ValueError(f"within = {within} is not above 0")
    h, w = labels.shape[-2:]
    if h * h + w * w > NO_TARGET:
        raise ValueError(f"an image of {h} x {w} pixels is too large: h^2 + w^2 must not exceed 2^30")
    labels = jnp.maximum(labels.astype(jnp.int32), 0)
    if labels.size == 0:
        return labels, labels, labels, labels
    found = _over_rows(_within_rows(labels.reshape(-1, h, w)), within)
    d1, l1, d2, l2 = (a.reshape(labels.shape) for a in found)
    return d1, l1, d2, l2


def _merged(a: Nearest, b: Nearest) -> Nearest:
    """The two nearest distinct labels of both pairs."""
    (a1, la, a2, la2), (b1, lb, b2, lb2) = a, b
    swap = b1 < a1
    first, first_label = jnp.where(swap, b1, a1), jnp.where(swap, lb, la)
    runner, runner_label = jnp.where(swap, a1, b1), jnp.where(swap, la, lb)
    # The runner-up of the other pair where it is the same object, or a pair's own second.
    same = runner_label == first_label
    runner = jnp.where(same, jnp.where(swap, a2, b2), runner)
    runner_label = jnp.where(same, jnp.where(swap, la2, lb2), runner_label)
    own, own_label = jnp.where(swap, b2, a2), jnp.where(swap, lb2, la2)
    closer = own <= runner
    return first, first_label, jnp.where(closer, own, runner), jnp.where(closer, own_label, runner_label)


def _within_rows(labels: jax.Array) -> Nearest:
    """Squared distances within each row, `[b, h, w]`."""
    b, h, w = labels.shape
    far, none = jnp.full((b, h), 2 * w, jnp.int32), jnp.zeros((b, h), jnp.int32)

    def step(carry: Nearest, label: jax.Array) -> tuple[Nearest, Nearest]:
        d1, l1, d2, l2 = carry
        here, new = label > 0, (label > 0) & (label != l1)
        # A new label makes the nearest one the second; that one cannot be the new one, so that the two differ.
        d2, l2 = jnp.where(new, d1, d2) + 1, jnp.where(new, l1, l2)
        d1, l1 = jnp.where(here, 0, d1 + 1), jnp.where(here, label, l1)
        d1, d2 = jnp.where(l1 > 0, d1, 2 * w), jnp.where(l2 > 0, d2, 2 * w)
        return (d1, l1, d2, l2), (d1, l1, d2, l2)

    lines = jnp.moveaxis(labels, 2, 0)
    start = (far, none, far, none)
    d1, l1, d2, l2 = _merged(lax.scan(step, start, lines)[1], lax.scan(step, start, lines, reverse=True)[1])
    squares = (jnp.where(label > 0, d * d, NO_TARGET) for d, label in ((d1, l1), (d2, l2)))
    s1, s2 = squares
    s1, l1, s2, l2 = (jnp.transpose(a, (1, 2, 0)) for a in (s1, l1, s2, l2))
    return s1, l1, s2, l2


def _over_rows(rows: Nearest, within: float) -> Nearest:
    """The nearest over all rows, from those within rows."""
    h = rows[0].shape[1]
    reach = h if within >= h else int(within) + 1  # rows that are farther than `within` are not looked at
    margin = min(h, reach) + ROWS_A_STEP
    pad = [(0, 0), (margin, margin), (0, 0)]
    padded = tuple(jnp.pad(a, pad, constant_values=NO_TARGET if i % 2 == 0 else 0) for i, a in enumerate(rows))
    labels = rows[1]
    # In an image with one object the second never comes, in one without the first: they must not keep others waiting.
    top = jnp.max(labels, axis=(1, 2), keepdims=True)
    bottom = jnp.min(jnp.where(labels > 0, labels, top), axis=(1, 2), keepdims=True)

    def unfinished(state: tuple[Nearest, jax.Array]) -> jax.Array:
        (d1, _, d2, _), offset = state
        open_distance = jnp.where(top != bottom, d2, jnp.where(top > 0, d1, 0))
        return (offset < reach) & (jnp.max(open_distance) > offset * offset)

    def look(state: tuple[Nearest, jax.Array]) -> tuple[Nearest, jax.Array]:
        nearest, offset = state
        for k in range(ROWS_A_STEP):
            for start in (margin - offset - k, margin + offset + k):
                d1, l1, d2, l2 = (lax.dynamic_slice_in_dim(a, start, h, axis=1) for a in padded)
                rise = (offset + k) * (offset + k)
                # No more than NO_TARGET, so that a label that is none never passes for one.
                d1, d2 = jnp.minimum(d1 + rise, NO_TARGET), jnp.minimum(d2 + rise, NO_TARGET)
                nearest = _merged(nearest, (d1, l1, d2, l2))
        return nearest, offset + ROWS_A_STEP

    return lax.while_loop(unfinished, look, (rows, jnp.int32(1)))[0]
