"""The one place that sums, counts and composes losses, so that a batch split in any way gives the same number."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxseg.core.errors import JaxsegError
from jaxseg.core.names import call_with_options, resolve


@dataclasses.dataclass(frozen=True)
class PixelLoss:
    """A loss with one value per pixel.

    Attributes:
      values: `(logits [*b, h, w, c], labels [*b, h, w], *, where) -> float32 [*b, h, w]`.
      pixel_weights: `(labels, *, where) -> float32 [*b, h, w]`, what a pixel adds to the count; None: 1 a valid pixel.
    """

    values: Callable[..., jax.Array]
    pixel_weights: Callable[..., jax.Array] | None = None

    def __call__(self, logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike) -> jax.Array:
        """The values, unreduced."""
        return self.values(logits, labels, where=where)


def checked_inputs(logits: ArrayLike, labels: ArrayLike, where: ArrayLike) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits as float32 (float64 stays), labels and mask as arrays, after a check of types and shapes.

    Args:
      logits: float `[*b, h, w, c]`.
      labels: integers `[*b, h, w]`.
      where: bool `[*b, h, w]`.

    Raises:
      TypeError: labels are not integers, `where` is not bool, or logits are not floats.
      ValueError: shapes do not fit each other.
    """
    logits, labels, where = jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(where)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"logits must be floats, not {logits.dtype}")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, not {labels.dtype}")
    if where.dtype != jnp.bool_:
        raise TypeError(f"where must be bool, not {where.dtype}")
    if logits.ndim < 1 or logits.shape[:-1] != labels.shape or labels.shape != where.shape:
        raise ValueError(
            f"logits {logits.shape}, labels {labels.shape} and where {where.shape} do not fit: "
            "labels and where take the shape of the logits without the classes"
        )
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)  # a class id may exceed the range of a narrow type
    return logits.astype(logits.dtype if logits.dtype.itemsize > 4 else jnp.float32), labels, where


def sum_and_count(
    values: ArrayLike, where: ArrayLike, *, pixel_weights: ArrayLike | None = None
) -> tuple[jax.Array, jax.Array]:
    """`(sum over where of values, number of pixels in where)`; add both up over parts, then divide once.

    Args:
      values: float `[*s]`.
      where: bool `[*s]`.
      pixel_weights: float `[*s]`; where given, the count is their sum over `where`.

    Returns:
      Two scalars of the values' type. The number of pixels is counted in int32: float32 would stop at 2^24.

    Raises:
      ValueError: shapes do not fit each other.
    """
    values, where = jnp.asarray(values), jnp.asarray(where)
    if values.shape != where.shape:
        raise ValueError(f"values {values.shape} and where {where.shape} differ in shape")
    total = jnp.sum(jnp.where(where, values, 0.0))
    if pixel_weights is None:
        return total, jnp.sum(where, dtype=jnp.int32).astype(values.dtype)
    pixel_weights = jnp.asarray(pixel_weights)
    if pixel_weights.shape != where.shape:
        raise ValueError(f"pixel_weights {pixel_weights.shape} and where {where.shape} differ in shape")
    return total, jnp.sum(jnp.where(where, pixel_weights, 0.0)).astype(values.dtype)


def compose(loss_config: Mapping[str, Any]) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The loss of a config: `sum over terms of weight * term`, as a sum and a count.

    Args:
      loss_config: name -> weight, or name -> {"weight": ..., options of that loss's build()}; weight is 1 by default.
        `{"cross_entropy": 1.0}`, `{"cross_entropy": {"weight": 1.0, "label_smoothing": 0.1}}`.

    Returns:
      `(logits [*b, h, w, c], labels [*b, h, w], *, where) -> (sum, count)`, two float32 scalars. Divide after adding
      up devices and accumulation steps; the count is 0 where no pixel is valid.

    Raises:
      JaxsegError: no term, an unknown name or option (with near matches), a bad weight, or terms that count
        differently, whose sums cannot share one division.
    """
    terms: list[tuple[str, float, Callable[..., jax.Array]]] = []
    for name, entry in dict(loss_config).items():
        options = dict(entry) if isinstance(entry, Mapping) or hasattr(entry, "items") else {"weight": entry}
        weight = options.pop("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise JaxsegError(
                f"config.loss.{name} has the weight {weight!r}; it takes a finite number that is not negative."
            )
        term = call_with_options(resolve("losses", name), options, where=f"config.loss.{name}")
        if weight:
            terms.append((name, float(weight), term))
    if not terms:
        raise JaxsegError(
            'config.loss has no term with a weight above 0; give one, for example {"cross_entropy": 1.0}.'
        )
    counters = [getattr(term, "pixel_weights", None) for _, _, term in terms]
    if len(terms) > 1 and any(counters):
        raise JaxsegError(
            f"config.loss adds {', '.join(name for name, _, _ in terms)}, and one of them divides by class weights. "
            "Terms that are added are divided by the same count: set normalizer = 'valid_pixels'."
        )

    def loss(logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike) -> tuple[jax.Array, jax.Array]:
        values = sum(weight * term(logits, labels, where=where) for _, weight, term in terms)
        shares = counters[0](labels, where=where) if counters[0] else None
        return sum_and_count(values, where, pixel_weights=shares)

    return loss
