"""The train step's program, compiled in a thread of its own while the first state is computed.

Tracing, which holds Python's lock, comes first: the program takes longer than the state, and each would slow the other
down. What then runs beside the state is XLA's: compiling, or setting up what the compilation cache has.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.export import Exported

from jaxseg.core.mesh import batch_sharding
from jaxseg.core.rng import base_key
from jaxseg.train.collector import collector_paused
from jaxseg.train.program_store import RunPrograms
from jaxseg.train.run import Run, Training
from jaxseg.train.state import TrainState, placed_shapes


def with_kept_initialize(run: Run, programs: RunPrograms) -> Run:
    """The run, whose initial variables and their shapes are not traced where an earlier start has kept their program.

    Args:
      run: of `make_run`.
      programs: of this run.
    """
    with collector_paused(), jax.default_device(jax.local_devices()[0]):
        kept = programs.traced("initialize", run.initialize, base_key(0))
    return dataclasses.replace(run, kept_initialize=kept.call) if kept else run


def batch_shapes(run: Run) -> dict[str, jax.ShapeDtypeStruct]:
    """The global training batch as the step takes it: `image` uint8 `[b, h, w, 3]`, `label` int32 `[b, h, w]`."""
    shape = (run.config.train.batch_size, *run.config.data.crop_size_px)
    kinds = {"image": ((*shape, 3), jnp.uint8), "label": (shape, jnp.int32)}
    return {
        name: jax.ShapeDtypeStruct(size, dtype, sharding=batch_sharding(run.mesh, len(size)))
        for name, (size, dtype) in kinds.items()
    }


def begin_program(
    run: Run, training: Training, programs: RunPrograms | None = None
) -> Callable[[], Callable[..., Any]]:
    """Traces `training.step`, where no earlier start has kept what that gives, and begins to compile it in a thread.

    What can fail comes before: nothing can end a compilation, not even the process' end. What tracing raises is raised
    here.

    Args:
      run: of `make_run`.
      training: of `make_training`, for this run.
      programs: of this run; None: nothing is kept.

    Returns:
      What waits for the compiled step and returns it.
    """
    state, batch = placed_shapes(training.abstract, run.mesh), batch_shapes(run)
    with collector_paused():
        exported = _exported(training, state, batch, programs) if programs else None
        if exported:
            # At the first start too: all starts compile the kept program.
            lowered = jax.jit(exported.call, donate_argnums=0).lower(jax.tree.leaves(state), batch)
        else:
            lowered = training.step.lower(state, batch)
    thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="train_step")
    program = thread.submit(lowered.compile)
    thread.shutdown(wait=False)
    return (lambda: _of_state(program.result(), jax.tree.structure(state))) if exported else program.result


def _exported(training: Training, state: TrainState, batch: Any, programs: RunPrograms) -> Exported | None:
    """The step as a program of the state's leaves, read or traced and kept; None where that is not possible."""
    structure = jax.tree.structure(state)

    def step(leaves: list[jax.Array], batch: Any) -> tuple[list[jax.Array], Any]:
        state, metrics = training.step(jax.tree.unflatten(structure, leaves), batch)
        return jax.tree.leaves(state), metrics

    return programs.traced("train_step", step, jax.tree.leaves(state), batch, donated=(0,))


def _of_state(program: Callable[..., Any], structure: Any) -> Callable[..., Any]:
    """A program of the state's leaves as one of the state."""

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        leaves, metrics = program(jax.tree.leaves(state), batch)
        return jax.tree.unflatten(structure, leaves), metrics

    return step
