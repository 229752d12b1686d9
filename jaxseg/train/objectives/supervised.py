"""Supervised training: the composed loss on the main logits plus a factor times the same loss on auxiliary logits."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from jaxseg.core.coarse import CoarseLogits
from jaxseg.core.errors import JaxsegError
from jaxseg.core.masks import valid_mask
from jaxseg.core.normalize import normalize
from jaxseg.core.types import Batch, Outputs
from jaxseg.losses.composition import Composition
from jaxseg.train.objective import Objective

RNG_NAMES = ("dropout",)


def build(
    *,
    model: nn.Module,
    loss: Composition,
    loss_aux_weight: float,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    num_classes: int,
    loss_block_rows: int = 0,
) -> Objective:
    """`L(logits) + loss_aux_weight * sum over heads L(aux/...)`, over the valid pixels of the whole batch.

    Where the loss has several terms, the metrics show each of the main logits before its weight.

    With `loss_block_rows` the logits at full size are never whole in memory, in either pass: they are enlarged by that
    many rows at a time from what the network has before its last resize (`coarse/...` of its outputs). A network that
    ends otherwise gives its logits as they are, which blocks work through all the same, to no gain.

    Raises:
      JaxsegError: `loss_block_rows` is no number of rows, or a term of the loss needs all logits at once.
    """
    if isinstance(loss_block_rows, bool) or not isinstance(loss_block_rows, int) or loss_block_rows < 0:
        raise JaxsegError(
            f"config.train.loss_block_rows = {loss_block_rows!r} is not a number of rows (64, say; 0: all)."
        )
    if loss_block_rows:
        loss.check_by_rows()

    def forward(params: Any, model_state: Any, batch: Batch, keys: dict[str, jax.Array]) -> tuple[Outputs, Any]:
        image = normalize(batch["image"], mean=image_mean, std=image_std)
        outputs, updated = model.apply(
            {"params": params, **model_state}, image, train=True, rngs=keys, mutable=list(model_state)
        )
        heads = [name for name in outputs if name.startswith("aux/")]
        if bool(loss_aux_weight) != bool(heads):
            found = f"the model has the auxiliary heads {heads}" if heads else "the model has no auxiliary head"
            raise JaxsegError(f"config.loss_aux_weight = {loss_aux_weight}, but {found}. Switch both on or both off.")
        taken = {name: outputs[name] for name in ("logits", *heads)}
        if loss_block_rows:
            taken = {name: outputs.get(f"coarse/{name}", CoarseLogits(full)) for name, full in taken.items()}
        return taken, updated

    def divisors(batch: Batch) -> dict[str, jax.Array]:
        where = valid_mask(batch["label"], num_classes=num_classes)
        return loss.divisors(batch["label"], where=where, num_classes=num_classes)

    def value(
        outputs: Outputs, batch: Batch, divisors: Mapping[str, jax.Array], step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        where = valid_mask(batch["label"], num_classes=num_classes)
        options: dict[str, Any] = {"where": where, "divisors": divisors, "step": step}
        compute = functools.partial(loss.by_rows, rows=loss_block_rows) if loss_block_rows else loss
        total, terms = compute(outputs["logits"], batch["label"], **options)
        for name in outputs:
            if name != "logits":
                total = total + loss_aux_weight * compute(outputs[name], batch["label"], **options)[0]
        return total, terms if len(terms) > 1 else {}

    return Objective(forward=forward, divisors=divisors, loss=value, whole_batch=loss.whole_batch)
