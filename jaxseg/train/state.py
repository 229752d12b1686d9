"""Everything that a run carries from step to step, as one pytree."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxseg.core.mesh import parameter_sharding
from jaxseg.core.rng import base_key
from jaxseg.train.optim import Optimizer


@flax.struct.dataclass
class TrainState:
    """One pytree; the step count is the only clock.

    Attributes:
      step: int32, number of updates done.
      params: float32 parameters.
      model_state: the model's other collections (`batch_stats`).
      opt_state: the optimiser's state.
      rng: uint32 key data of the run's base key; it never changes, steps fold their number into it.
      ema: exponential moving average of params, or None.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    rng: jax.Array
    ema: Any = None

    def variables(self) -> dict[str, Any]:
        """What evaluation and prediction apply: averaged parameters where there are any."""
        return {"params": self.params if self.ema is None else self.ema, **self.model_state}


def create_state(variables: Any, optimizer: Optimizer, *, seed: int, ema: bool) -> TrainState:
    """The state at step 0."""
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state={name: value for name, value in variables.items() if name != "params"},
        opt_state=jax.jit(optimizer.init)(params),  # one program and not one for each shape
        rng=jax.random.key_data(base_key(seed)),
        ema=jax.tree.map(jnp.array, params) if ema else None,
    )


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """A tree of shardings like the state: parameters, their averages and moments split over fsdp."""
    return jax.tree.map(lambda x: parameter_sharding(mesh, x.shape), state)


def place_state(state: TrainState, mesh: Mesh) -> TrainState:
    """Puts a state that every process holds alike onto the mesh."""

    def place(value: Any, sharding: Any) -> jax.Array:
        host = np.asarray(value)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, state, state_shardings(state, mesh))


def placed_shapes(abstract: TrainState, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings: what a checkpoint is restored into."""
    shardings = state_shardings(abstract, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
