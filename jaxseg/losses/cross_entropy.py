"""Softmax cross-entropy per pixel, with class weights and label smoothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxseg.core.errors import JaxsegError
from jaxseg.core.names import call_with_options
from jaxseg.losses import options
from jaxseg.losses.border_weights import checked_border_options, class_map_border_weights
from jaxseg.losses.inputs import checked_class_weights, checked_inputs, checked_pixel_weights, of_label
from jaxseg.losses.reduction import Loss, pixel_counts, pixel_sums, weighted_pixel_sums


def build(
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    normalizer: str = "valid_pixels",
    border_weight: Mapping[str, Any] | None = None,
) -> Loss:
    """The loss `cross_entropy` of a config.

    Args:
      label_smoothing: share of the target that is spread over all classes, in [0, 1).
      class_weights: one non-negative weight a class, or None.
      normalizer: what the sum is divided by: `valid_pixels` counts pixels (Caffe, SegNet); `class_weights` adds up the
        weights of the pixels' classes (PyTorch), a factor that depends on the data; `all_pixels` counts void too;
        `images` leaves the sum over an image's pixels (the published FCN and U-Net).
      border_weight: U-Net's weights, added to the class's weight at each pixel: options of
        `border_weights.class_map_border_weights`, for example {"w0": 10.0, "sigma": 5.0, "background": 0}. They are
        computed in the step from the regions of the label map; the normalizer does not count them.

    Returns:
      A loss with one value per pixel, see `cross_entropy`.

    Raises:
      JaxsegError: an option is out of its range.
    """
    if not 0 <= label_smoothing < 1:
        raise JaxsegError(f"config.loss.cross_entropy.label_smoothing = {label_smoothing} is not in [0, 1).")
    weights = options.weights("cross_entropy.class_weights", class_weights)

    border = None
    if border_weight is not None:
        key = "cross_entropy.border_weight"
        border = call_with_options(checked_border_options, dict(border_weight), where=f"config.loss.{key}", key=key)

    def values(logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
        if border is None:
            return cross_entropy(logits, labels, where=where, label_smoothing=label_smoothing, class_weights=weights)
        logits, labels, where = checked_inputs(logits, labels, where)
        plus = with_border(None, labels, where)
        return unweighted(logits, labels, where=where) * plus.astype(logits.dtype)

    def unweighted(logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
        checked_class_weights(weights, jnp.shape(logits)[-1], jnp.dtype(jnp.float32))
        return cross_entropy(logits, labels, where=where, label_smoothing=label_smoothing)

    def with_border(pixels: None, labels: jax.Array, where: jax.Array) -> jax.Array:
        del pixels
        return _with_border_weights(labels, where, weights, border or {})

    by_rows = pixel_sums(values) if border is None else weighted_pixel_sums(unweighted, with_border)
    return Loss(values, pixel_counts(normalizer=normalizer, class_weights=weights), by_rows=by_rows)


def cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    class_weights: ArrayLike | Sequence[float] | None = None,
    pixel_weights: ArrayLike | None = None,
) -> jax.Array:
    """Minus the log of the softmax probability of the true class, per pixel.

    `(1 - e) w_y (-log p_y) + e / C sum_c w_c (-log p_c)`, with smoothing `e`, classes `C`, weights `w` (default 1).

    Computed in float32 whatever the logits' type, and finite for any finite logits. What stands at pixels outside
    `where` has no influence on values or gradients, even NaN. A label that is no class id inside `where` gives NaN.

    Args:
      logits: float `[*b, h, w, c]`.
      labels: integers `[*b, h, w]`; class ids inside `where`, anything outside.
      where: bool `[*b, h, w]`, the pixels that count; None: all.
      label_smoothing: `e`, in [0, 1).
      class_weights: c weights, finite and not negative.
      pixel_weights: `[*b, h, w]`, a factor for each pixel, for example U-Net's border weights.

    Returns:
      float32 `[*b, h, w]`, 0 outside `where`. Logits (ln .8, ln .2) with label 0 give 0.22314.

    Raises:
      TypeError: labels are not integers, `where` is not bool, or logits are not floats.
      ValueError: shapes do not fit each other, and, outside of jit, a label that is no class id, a negative weight, or
        probabilities in place of logits.

    Reference: the smoothing is Szegedy et al., arXiv 1512.00567, section 7; with weights it is PyTorch's formula.
    """
    logits, labels, where = checked_inputs(logits, labels, where)
    weights = checked_class_weights(class_weights, logits.shape[-1], logits.dtype)
    factors = checked_pixel_weights(pixel_weights, where, logits.dtype)
    loss = negative_log_likelihood(logits, labels, where)
    if weights is not None:
        loss = loss * of_label(weights, jnp.where(where, labels, 0))
    if label_smoothing:
        # The mask goes in before the arithmetic: 0 * NaN in a gradient is NaN.
        clean = jnp.where(where[..., None], logits, 0.0)
        spread = jax.nn.logsumexp(clean, axis=-1, keepdims=True) - clean
        spread = spread if weights is None else spread * weights
        uniform = jnp.where(where, jnp.mean(spread, axis=-1), 0.0)
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform
    return loss if factors is None else loss * factors


def _with_border_weights(
    labels: jax.Array, where: jax.Array, class_weights: Sequence[float] | None, border: Mapping[str, Any]
) -> jax.Array:
    """`w_y + w0 exp(-(d1 + d2)^2 / (2 sigma^2))` for each pixel, 0 outside `where`; float32 `[*b, h, w]`."""
    own = jnp.asarray(1.0 if class_weights is None else class_weights, jnp.float32)
    own = own if class_weights is None else of_label(own, jnp.where(where, labels, 0))
    return jnp.where(where, own + class_map_border_weights(labels, where=where, **border), 0.0)


@jax.custom_vjp
def negative_log_likelihood(logits: jax.Array, labels: jax.Array, where: jax.Array) -> jax.Array:
    """`log sum exp(logits) - logits[label]` of checked inputs inside `where`, else 0; NaN where a label is no class id.

    The gradient is written out because the automatic one of the lookup is a scatter, which no platform runs fast, and
    because it lets the mask be applied to the results instead of to a copy of the logits.
    """
    return _forward(logits, labels, where)[0]


def _forward(logits: jax.Array, labels: jax.Array, where: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    top = jnp.max(logits, axis=-1)
    log_sum = jnp.log(jnp.sum(jnp.exp(logits - top[..., None]), axis=-1))
    safe = jnp.where(where, labels, 0)
    known = (safe >= 0) & (safe < logits.shape[-1])
    chosen = of_label(logits, jnp.where(known, safe, 0))
    # `top` stays apart from `log_sum`: their sum would round a loss of 1e-3 away at logits of 1e4.
    loss = jnp.where(where, jnp.where(known, log_sum + (top - chosen), jnp.nan), 0.0)
    return loss, (logits, labels, where, top, log_sum)


def _backward(residuals: tuple[jax.Array, ...], upstream: jax.Array) -> tuple[jax.Array, None, None]:
    logits, labels, where, top, log_sum = residuals
    classes = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    target = (classes == labels[..., None]).astype(logits.dtype)
    gradient = (jnp.exp((logits - top[..., None]) - log_sum[..., None]) - target) * upstream[..., None]
    return jnp.where(where[..., None], gradient, 0.0), None, None


negative_log_likelihood.defvjp(_forward, _backward)
