"""The train step's program, compiled in a thread of its own while the first state is computed.

Tracing, which holds Python's lock, comes first: the program takes longer than the state, and each would slow the other
down. What then runs beside the state is XLA's: compiling, or setting up what the compilation cache has.
"""

import concurrent.futures
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxseg.core.mesh import batch_sharding
from jaxseg.train.collector import collector_paused
from jaxseg.train.run import Run, Training
from jaxseg.train.state import TrainState, place_state, placed_shapes


def batch_shapes(run: Run) -> dict[str, jax.ShapeDtypeStruct]:
    """The global training batch as the step takes it: `image` uint8 `[b, h, w, 3]`, `label` int32 `[b, h, w]`."""
    shape = (run.config.train.batch_size, *run.config.data.crop_size_px)
    kinds = {"image": ((*shape, 3), jnp.uint8), "label": (shape, jnp.int32)}
    return {
        name: jax.ShapeDtypeStruct(size, dtype, sharding=batch_sharding(run.mesh, len(size)))
        for name, (size, dtype) in kinds.items()
    }


def begin(run: Run, training: Training, weights: Any) -> tuple[TrainState, Callable[[], Callable[..., Any]]]:
    """The placed state of step 0, and what waits for the compiled `training.step`.

    `weights` are of `Run.read_weights`: what can fail comes before the thread, since nothing can end a compilation, not
    even the process' end.
    """
    with collector_paused():
        lowered = training.step.lower(placed_shapes(training.abstract, run.mesh), batch_shapes(run))
    thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="train_step")
    program = thread.submit(lowered.compile)
    thread.shutdown(wait=False)
    return place_state(training.first_state(weights), run.mesh), program.result
