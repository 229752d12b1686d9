"""The input pipeline alone, and the share of the train loop's time that waits for it."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

from jaxseg.core.errors import JaxsegError
from jaxseg.core.mesh import put_batch
from jaxseg.train.loop import open_train_batches
from jaxseg.train.meter import Meter, StepResult
from jaxseg.train.run import Run, make_run
from jaxseg.train.step import TRAINED_FIELDS


def measure_input(config: Any, step: Callable[..., Any], state: Any) -> dict[str, Any]:
    """Batches of the config's training split, first without training and then with it.

    Args:
      config: of the run; its data set is prepared where it is not yet, as training would.
      step: the compiled train step.
      state: where training goes on from; it is donated.

    Returns:
      `images_per_second` of the pipeline alone; `step_seconds`, `input_wait_share` and
      `training_images_per_second` of the train loop's own pieces. `skipped` with the reason where the data set cannot
      be opened.
    """
    try:
        run = make_run(config)
    except JaxsegError as error:
        return {"skipped": str(error)}
    found: dict[str, Any] = {"workers": config.data.workers, "prefetch_batches": config.data.prefetch_batches}
    with contextlib.closing(open_train_batches(run)) as batches:
        batches.start_prefetch()
        # What was prefetched before the clock started would come for nothing.
        lead = config.bench.warmup_steps + config.data.prefetch_batches * (config.data.workers + 1)
        found["images_per_second"] = pipeline_rate(batches, config.train.batch_size, lead, config.bench.input_batches)
    with contextlib.closing(open_train_batches(run)) as batches:
        batches.start_prefetch()
        values = loop_values(run, step, state, batches)
    found["input_wait_share"], found["step_seconds"] = values["input_wait_share"], values["step_seconds"]
    return found | {"training_images_per_second": values["images_per_second"]}


def pipeline_rate(batches: Any, batch_size: int, lead: int, count: int) -> float:
    """Images/s over `count` batches of `batch_size` (of all processes), after `lead` that are not counted."""
    for _ in range(lead):
        next(batches)
    began = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * batch_size / (time.perf_counter() - began)


def loop_values(run: Run, step: Callable[..., Any], state: Any, batches: Any) -> dict[str, float]:
    """What the train loop's meter reads after `config.bench.steps` steps: input, step, a look at the step before."""
    options, before = run.config.bench, None
    meter = Meter(run.config.train.batch_size)
    for number in range(options.warmup_steps + options.steps):
        if number == options.warmup_steps:
            meter.restart()
        batch = meter.timed_input(lambda: next(batches))
        placed = put_batch(run.mesh, {name: batch[name] for name in TRAINED_FIELDS})
        state, values = step(state, placed)
        if before:
            before.check(run.name_of)
        before = StepResult(number + 1, batch["index"], values)
    assert before is not None
    before.check(run.name_of)
    return meter.read()
