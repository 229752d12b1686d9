"""Bootstrapped cross-entropy: only the hardest pixels count (arXiv 1605.06885, 1611.08323)."""

from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxseg.core.errors import JaxsegError
from jaxseg.losses import options
from jaxseg.losses.cross_entropy import negative_log_likelihood
from jaxseg.losses.inputs import checked_class_weights, checked_inputs, of_label
from jaxseg.losses.reduction import Loss, weighted_pixel_sums
from jaxseg.ops.selection import top_k_share

DEFAULT_FRACTION = 0.25
_MAX_DENOMINATOR = 1 << 15  # times any remainder it stays below 2^31


def build(
    *,
    fraction: float | None = None,
    pixels: int | None = None,
    per_image: bool = True,
    class_weights: Sequence[float] | None = None,
) -> Loss:
    """The loss `bootstrapped_cross_entropy` of a config: the mean over the pixels that are kept.

    Args:
      fraction: share of the valid pixels that is kept, in (0, 1]; 0.25 where neither this nor `pixels` is given.
      pixels: number of pixels that is kept, at least 1, in place of a fraction.
      per_image: keeps that many of each image; otherwise of the whole batch, for which all logits must be there.
      class_weights: one non-negative weight a class, or None.

    Returns:
      A loss with one value per pixel, see `bootstrapped_cross_entropy`.

    Raises:
      JaxsegError: an option is out of its range.
    """
    name = "bootstrapped_cross_entropy"
    weights = options.weights(f"{name}.class_weights", class_weights)
    if fraction is not None:
        fraction = options.number(f"{name}.fraction", fraction, most=1)
    if pixels is not None:
        pixels = options.whole_number(f"{name}.pixels", pixels, least=1)
    try:
        share = _checked_share(fraction, pixels)
    except ValueError as error:
        raise JaxsegError(f"config.loss.{name}: {error}.") from error

    def values(logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
        return bootstrapped_cross_entropy(
            logits, labels, where=where, fraction=fraction, pixels=pixels, per_image=per_image, class_weights=weights
        )

    def counts(labels: ArrayLike, *, where: ArrayLike | None = None, num_classes: int) -> jax.Array:
        valid = jnp.ones(jnp.shape(labels), bool) if where is None else jnp.asarray(where)
        return _kept(valid, share, _axes(valid.ndim, per_image)).astype(jnp.float32)

    def likelihoods(logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
        checked_class_weights(weights, jnp.shape(logits)[-1], jnp.dtype(jnp.float32))
        return negative_log_likelihood(*checked_inputs(logits, labels, where))

    def shares(pixels: jax.Array, labels: jax.Array, where: jax.Array) -> jax.Array:
        axes = _axes(pixels.ndim, per_image)
        found = top_k_share(pixels, _kept(where, share, axes), where=where, axes=axes)
        return found if weights is None else found * jnp.asarray(weights, found.dtype)[jnp.where(where, labels, 0)]

    by_rows = weighted_pixel_sums(likelihoods, shares, selects=True)
    return Loss(values, counts, whole_batch=not per_image, by_rows=by_rows)


def bootstrapped_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    fraction: float | None = None,
    pixels: int | None = None,
    per_image: bool = True,
    class_weights: ArrayLike | Sequence[float] | None = None,
) -> jax.Array:
    """Cross-entropy of the pixels whose true class has the lowest probability; 0 for the others.

    Of n valid pixels k are kept: `ceil(fraction n)`, or `min(pixels, n)`. k is exact and follows from the labels alone,
    so that the mean over kept pixels is `sum(values) / sum(k)`. Where several pixels are as hard as the k-th, each of
    them counts by the same share: the result depends neither on the order of pixels nor on chance, and at the start of
    training, when all logits are equal, every pixel gets some gradient.

    Args:
      logits: float `[*b, h, w, c]`.
      labels: integers `[*b, h, w]`; class ids inside `where`, anything outside.
      where: bool `[*b, h, w]`, the pixels that count; None: all.
      fraction: in (0, 1]; 0.25 where neither this nor `pixels` is given. Taken as a ratio of whole numbers with at most
        four to five digits, so that k is what a person computes.
      pixels: at least 1, in place of a fraction.
      per_image: k of each image; otherwise k of the batch.
      class_weights: c weights, finite and not negative; they do not change which pixels are hard.

    Returns:
      float32 `[*b, h, w]`. Losses (3, 1, 2, 2) with pixels=2 give (3, 0, 1, 1).

    Raises:
      TypeError, ValueError: as `cross_entropy`; fraction or pixels is out of its range, or both are given.

    Reference: Wu et al., arXiv 1605.06885 (a fixed number of pixels); Pohlen et al., arXiv 1611.08323, section on
    training (the K lowest probabilities of an image). Differences: Wu et al. also keep every pixel below a
    probability, see `ohem_cross_entropy`.
    """
    share = _checked_share(fraction, pixels)
    logits, labels, where = checked_inputs(logits, labels, where)
    weights = checked_class_weights(class_weights, logits.shape[-1], logits.dtype)
    loss = negative_log_likelihood(logits, labels, where)
    axes = _axes(loss.ndim, per_image)
    loss = loss * top_k_share(loss, _kept(where, share, axes), where=where, axes=axes)
    return loss if weights is None else loss * of_label(weights, jnp.where(where, labels, 0))


def _axes(ndim: int, per_image: bool) -> tuple[int, ...]:
    return tuple(range(max(0, ndim - 2) if per_image else 0, ndim))


def _checked_share(fraction: float | None, pixels: int | None) -> Fraction | int:
    if fraction is not None and pixels is not None:
        raise ValueError(f"fraction = {fraction} and pixels = {pixels} exclude each other")
    if pixels is not None:
        if pixels < 1:
            raise ValueError(f"pixels = {pixels} is not at least 1")
        return min(pixels, (1 << 31) - 1)
    fraction = DEFAULT_FRACTION if fraction is None else fraction
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction = {fraction} is not in (0, 1]")
    return max(Fraction(fraction).limit_denominator(_MAX_DENOMINATOR), Fraction(1, _MAX_DENOMINATOR))


def _kept(where: jax.Array, share: Fraction | int, axes: tuple[int, ...]) -> jax.Array:
    """How many pixels are kept, int32 with 1 for each of `axes`; in integers, which float32 is too coarse for."""
    valid = jnp.sum(where, axis=axes, keepdims=True, dtype=jnp.int32)
    if isinstance(share, int):
        return jnp.minimum(valid, share)
    whole, rest = valid // share.denominator, valid % share.denominator
    return whole * share.numerator + -(-rest * share.numerator // share.denominator)
