"""One update of the state: gradients over the accumulation steps, optimiser, moving average."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxseg.core.mesh import batch_sharding, replicated
from jaxseg.core.rng import step_keys
from jaxseg.core.types import Batch
from jaxseg.train.gradients import batch_gradients
from jaxseg.train.objective import Objective
from jaxseg.train.optim import Optimizer
from jaxseg.train.state import TrainState, state_shardings

TRAINED_FIELDS = ("image", "label")


def moving_average(ema: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """`ema + (1 - d) (params - ema)`, `d = min(decay, (1 + step) / (10 + step))`, so that the start is forgotten."""
    step = step.astype(jnp.float32)
    rate = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda e, p: e + rate * (p - e), ema, params)


def make_train_step(
    objective: Objective,
    optimizer: Optimizer,
    *,
    state: TrainState,
    mesh: Mesh,
    accumulation_steps: int = 1,
    ema_decay: float = 0.0,
) -> jax.stages.Wrapped:
    """The jitted step `(state, batch) -> (state, metrics)`; the given state is donated.

    Each array of the new state takes the memory of the old one's. The batch is not donated: no result has its shape, so
    that XLA could do nothing with it.

    The loss is that of the global batch, whatever the devices and accumulation steps.

    Args:
      objective: from `jaxseg.train.objectives`.
      optimizer: of `train.optim.make_optimizer`, for these parameters.
      state: a state, or its shapes, for the shardings.
      mesh: from `core.mesh.make_mesh`.
      accumulation_steps: the batch is worked through in that many parts, with batch norm per part.
      ema_decay: decay of the parameters' moving average; 0 for none.
    """

    def forward(params: Any, *arguments: Any) -> tuple[Any, Any]:
        return objective.forward(optimizer.trained(params), *arguments)

    of_trained = dataclasses.replace(objective, forward=forward)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        keys = step_keys(jax.random.wrap_key_data(state.rng), state.step, ("dropout",))
        found = batch_gradients(of_trained, state, batch, keys, accumulation_steps)
        updated = optimizer.update(found.grads, state.opt_state, state.params)
        metrics: dict[str, Any] = {
            "loss": found.loss,
            "learning_rate": jnp.asarray(optimizer.schedule(state.step), jnp.float32),
            "gradient_norm": updated.gradient_norm,
            "terms": found.terms,
            "row_finite": found.row_finite,
        }
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=updated.params,
            model_state=found.model_state,
            opt_state=updated.state,
            ema=moving_average(state.ema, updated.params, state.step, ema_decay) if ema_decay else None,
        )
        return state, metrics

    shardings = state_shardings(state, mesh)
    metric_shardings = dict.fromkeys(("loss", "learning_rate", "gradient_norm", "terms"), replicated(mesh))
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(shardings, {"image": batch_sharding(mesh, 4), "label": batch_sharding(mesh, 3)}),
        out_shardings=(shardings, metric_shardings | {"row_finite": batch_sharding(mesh, 1)}),
    )
