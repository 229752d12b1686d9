"""The train step's program, made in a thread of its own while the first state is computed or a checkpoint read.

Tracing holds Python's lock, but half of a start is XLA's: compiling, or setting up what the compilation cache has.
"""

import concurrent.futures
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxseg.core.mesh import batch_sharding
from jaxseg.train.run import Run, Training
from jaxseg.train.state import placed_shapes


def batch_shapes(run: Run) -> dict[str, jax.ShapeDtypeStruct]:
    """The global training batch as the step takes it: `image` uint8 `[b, h, w, 3]`, `label` int32 `[b, h, w]`."""
    shape = (run.config.train.batch_size, *run.config.data.crop_size_px)
    kinds = {"image": ((*shape, 3), jnp.uint8), "label": (shape, jnp.int32)}
    return {
        name: jax.ShapeDtypeStruct(size, dtype, sharding=batch_sharding(run.mesh, len(size)))
        for name, (size, dtype) in kinds.items()
    }


@contextlib.contextmanager
def compiled_ahead(run: Run, training: Training) -> Iterator[Callable[[], Callable[..., Any]]]:
    """Begins to compile `training.step`; what it gives waits for the program, or raises what tracing raised."""
    arguments = placed_shapes(training.abstract, run.mesh), batch_shapes(run)
    thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="train_step")
    program = thread.submit(lambda: training.step.lower(*arguments).compile())
    try:
        yield program.result
    finally:
        thread.shutdown(wait=False)  # a run that fails says so at once
