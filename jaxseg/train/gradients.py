"""Gradients of an objective over a batch, whole or in parts, with the same result."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxseg.core.types import Batch
from jaxseg.train.objective import Objective
from jaxseg.train.state import TrainState


class BatchGradients(NamedTuple):
    """`grads` of `loss`; `terms` of it; `model_state` afterwards; `row_finite` bool `[b]`, per image of the logits."""

    grads: Any
    loss: jax.Array
    terms: dict[str, jax.Array]
    model_state: Any
    row_finite: jax.Array


def split_rows(tree: Any, parts: int) -> Any:
    """`[b, ...]` to `[parts, b / parts, ...]`; row r goes to part r % parts, so that no row changes its device."""
    return jax.tree.map(lambda v: v.reshape(-1, parts, *v.shape[1:]).swapaxes(0, 1), tree)


def join_rows(tree: Any) -> Any:
    """The inverse of `split_rows`."""
    return jax.tree.map(lambda v: v.swapaxes(0, 1).reshape(-1, *v.shape[2:]), tree)


def batch_gradients(objective: Objective, state: TrainState, batch: Batch, keys: Any, parts: int) -> BatchGradients:
    """Gradients of the objective over the batch.

    Args:
      objective: what is optimised.
      state: gives parameters, model state and step.
      batch: arrays `[b, ...]`.
      keys: random keys by name; part i folds i in.
      parts: the batch is worked through in that many parts; batch norm sees a part at a time, everything else is as
        for the whole batch. A loss that needs the whole batch at once takes a second forward pass for it, and holds
        the outputs (not the activations) of all parts.
    """
    divisors = objective.divisors(batch)
    if parts == 1:
        return _of_rows(objective, state, state.model_state, batch, keys, divisors)
    pieces = split_rows(batch, parts), jnp.arange(parts, dtype=jnp.int32)
    if objective.whole_batch:
        return _by_outputs(objective, state, batch, pieces, keys, divisors)

    def part(model_state: Any, piece: Any) -> BatchGradients:
        rows, number = piece
        return _of_rows(objective, state, model_state, rows, _part_keys(keys, number), divisors)

    def add(carry: Any, piece: Any) -> tuple[Any, jax.Array]:
        sums, model_state = carry
        found = part(model_state, piece)
        return (jax.tree.map(jnp.add, sums, found[:3]), found.model_state), found.row_finite

    shapes = jax.eval_shape(part, state.model_state, jax.tree.map(lambda v: v[0], pieces))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[:3])
    ((grads, loss, terms), model_state), finite = jax.lax.scan(add, (zeros, state.model_state), pieces)
    return BatchGradients(grads, loss, terms, model_state, join_rows(finite))


def _of_rows(
    objective: Objective, state: TrainState, model_state: Any, rows: Batch, keys: Any, divisors: Any
) -> BatchGradients:
    """One pass forward and back."""

    def loss(params: Any) -> Any:
        outputs, updated = objective.forward(params, model_state, rows, keys)
        value, terms = objective.loss(outputs, rows, divisors, state.step)
        return value, (terms, updated, _rows_finite(outputs["logits"]))

    (value, (terms, updated, finite)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    return BatchGradients(grads, value, terms, updated, finite)


def _by_outputs(
    objective: Objective, state: TrainState, batch: Batch, pieces: Any, keys: Any, divisors: Any
) -> BatchGradients:
    """All outputs first, then the loss's gradient with respect to them, then back through one part after another."""

    def forward(params: Any, model_state: Any, piece: Any) -> tuple[Any, Any]:
        rows, number = piece
        return objective.forward(params, model_state, rows, _part_keys(keys, number))

    def outputs_of(model_state: Any, piece: Any) -> tuple[Any, Any]:
        outputs, updated = forward(state.params, model_state, piece)
        return updated, outputs

    model_state, stacked = jax.lax.scan(outputs_of, state.model_state, pieces)
    outputs = join_rows(stacked)
    (value, terms), slopes = jax.value_and_grad(objective.loss, has_aux=True)(outputs, batch, divisors, state.step)

    def back(carry: Any, inputs: Any) -> tuple[Any, None]:
        grads, state_before = carry
        piece, slope = inputs
        _, pull, updated = jax.vjp(lambda p: forward(p, state_before, piece), state.params, has_aux=True)
        return (jax.tree.map(jnp.add, grads, pull(slope)[0]), updated), None

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    parts = pieces[1].size
    (grads, _), _ = jax.lax.scan(back, (zeros, state.model_state), (pieces, split_rows(slopes, parts)))
    return BatchGradients(grads, value, terms, model_state, _rows_finite(outputs["logits"]))


def _part_keys(keys: Any, number: jax.Array) -> Any:
    return {name: jax.random.fold_in(key, number) for name, key in keys.items()}


def _rows_finite(logits: Any) -> jax.Array:
    """False where an image's logits are not finite; coarse ones are finite where the enlarged ones are."""
    (values,) = jax.tree.leaves(logits)
    return jnp.isfinite(jnp.sum(values, axis=tuple(range(1, values.ndim))))
