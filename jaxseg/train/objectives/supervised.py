"""Supervised training: the composed loss on the main logits plus a factor times the same loss on auxiliary logits."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.errors import JaxsegError
from jaxseg.core.masks import valid_mask
from jaxseg.core.normalize import normalize
from jaxseg.core.types import Batch

LossFunction = Callable[..., tuple[jax.Array, jax.Array]]
RNG_NAMES = ("dropout",)


def build(
    *,
    model: nn.Module,
    loss: LossFunction,
    loss_aux_weight: float,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    num_classes: int,
) -> Callable[..., tuple[jax.Array, dict[str, Any]]]:
    """Returns `objective(params, model_state, batch, keys) -> (sum, extras)`.

    The sum is `L(logits) + loss_aux_weight * sum over heads L(aux/...)`, each `L` summed over valid pixels, undivided:
    devices and accumulation steps add their sums and counts, and the step divides once.

    Returns:
      A function whose `extras` hold `count` (what to divide by), `model_state` (updated collections) and
      `row_finite` bool `[b]` (False where an image's logits are not finite).
    """

    def objective(params: Any, model_state: Any, batch: Batch, keys: dict[str, jax.Array]) -> Any:
        image = normalize(batch["image"], mean=image_mean, std=image_std)
        where = valid_mask(batch["label"], num_classes=num_classes)
        outputs, updated = model.apply(
            {"params": params, **model_state}, image, train=True, rngs=keys, mutable=list(model_state)
        )
        logits = outputs["logits"]
        total, count = loss(logits, batch["label"], where=where)
        heads = [name for name in outputs if name.startswith("aux/")]
        if bool(loss_aux_weight) != bool(heads):
            found = f"the model has the auxiliary heads {heads}" if heads else "the model has no auxiliary head"
            raise JaxsegError(f"config.loss_aux_weight = {loss_aux_weight}, but {found}. Switch both on or both off.")
        for name in heads:
            total = total + loss_aux_weight * loss(outputs[name], batch["label"], where=where)[0]
        row_finite = jnp.isfinite(jnp.sum(logits, axis=tuple(range(1, logits.ndim))))
        return total, {"count": count, "model_state": updated, "row_finite": row_finite}

    return objective
