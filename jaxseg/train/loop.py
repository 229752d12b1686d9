"""The train loop, from top to bottom."""

import contextlib
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxseg.core.mesh import put_batch
from jaxseg.data.pipeline import EvaluateBatches, evaluate_batches, train_batches
from jaxseg.train.ahead import begin_program, with_kept_initialize
from jaxseg.train.checkpoint import CheckpointStore
from jaxseg.train.meter import Meter, StepResult
from jaxseg.train.observer import Observer
from jaxseg.train.program_store import ProgramStore
from jaxseg.train.run import Run, Training, make_training
from jaxseg.train.state import TrainState, place_state, placed_shapes
from jaxseg.train.step import TRAINED_FIELDS
from jaxseg.train.stop import Preempted, StopRequest
from jaxseg.train.workdir import claim

LOGGER = logging.getLogger(__name__)
SUMMARY = ("miou_present", "miou_all", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou")


def train(
    run: Run, workdir: pathlib.Path, observers: Sequence[Observer], traced: ProgramStore | None = None
) -> dict[str, Any]:
    """Trains until `config.train.total_steps`, going on from the newest checkpoint in the work directory.

    Args:
      run: of `make_run`.
      workdir: of this run alone.
      observers: are told what happens.
      traced: programs of earlier starts; None: nothing is kept.

    Returns:
      The last evaluation's metrics, `step`, and `best_step`.

    Raises:
      Preempted: after SIGTERM or SIGINT, with the state saved.
      NonFiniteLossError: the loss became NaN or infinite.
    """
    config = run.config
    programs = traced.of(run) if traced else None
    # All that a config can get wrong comes first: a mistyped name must not make the folder another run's.
    run = with_kept_initialize(run, programs) if programs else run
    training, evaluate = make_training(run), make_evaluation(run, observers)
    claim(workdir, run.noted_config())
    with contextlib.ExitStack() as closing:
        batches = closing.enter_context(contextlib.closing(open_train_batches(run)))
        store = closing.enter_context(contextlib.closing(CheckpointStore(workdir, keep=config.checkpoint.keep)))
        restored = restore(store, training, run, batches)
        weights = None if restored else run.read_weights()  # before all that takes time: files may not fit
        batches.start_prefetch()  # its processes start while the first state is made
        if restored:
            (state, start), program = restored, lambda: begin_program(run, training, programs)()
        else:
            program = begin_program(run, training, programs)
            state, start = place_state(training.first_state(weights), run.mesh), 0
        notify(observers, "on_start", config, str(workdir), config.train.total_steps, start)
        state, metrics = run_steps(run, program, evaluate, state, start, batches, store, observers)
        store.wait()
        summary = {"step": config.train.total_steps, "best_step": store.pick("best"), **metrics}
        notify(observers, "on_end", summary)
        return summary


def run_steps(
    run: Run,
    program: Callable[[], Callable[..., Any]],
    evaluate: Callable[[TrainState, int], dict[str, float]],
    state: TrainState,
    start: int,
    batches: Any,
    store: CheckpointStore,
    observers: Sequence[Observer],
) -> tuple[TrainState, dict[str, float]]:
    """Steps `start + 1` to `total_steps`: input, update, log, evaluate, save. Returns the last state and evaluation."""
    config, total = run.config, run.config.train.total_steps
    meter, before = Meter(config.train.batch_size), None
    if start >= total:
        return state, evaluate(state, start)
    with StopRequest() as stop:
        train_step = program()
        for step in range(start + 1, total + 1):
            batch = meter.timed_input(lambda: next(batches))
            placed = put_batch(run.mesh, {name: batch[name] for name in TRAINED_FIELDS})
            with jax.transfer_guard("disallow"):  # nothing but the batch goes to the device, and that is there
                state, values = train_step(state, placed)
            # The step before is looked at while this one runs; what is saved or shown below is looked at itself.
            if before:
                before.check(run.name_of)
            before = StepResult(step, batch["index"], values)
            notify(observers, "on_step", step)
            last, stopping, metrics = step == total, stop.requested(step), {}
            if step % config.train.log_every_steps == 0 or last:
                before.check(run.name_of)
                notify(observers, "on_log", step, before.values() | meter.read())
            if step % config.evaluate.every_steps == 0 or last:
                before.check(run.name_of)
                metrics = evaluate(state, step)
                meter.restart()
            if step % config.checkpoint.every_steps == 0 or last or stopping:
                before.check(run.name_of)
                store.save(state, batches.get_state(), step=step, metrics=metrics or None)
            if stopping and not last:
                store.wait()
                raise Preempted(step)
    return state, metrics


def make_evaluation(run: Run, observers: Sequence[Observer]) -> Callable[[TrainState, int], dict[str, float]]:
    """Returns `evaluate(state, step)`: the evaluation split with the averaged parameters, told to the observers."""
    config, evaluator = run.config, run.evaluator()

    def evaluate(state: TrainState, step: int) -> dict[str, float]:
        with contextlib.closing(open_evaluate_batches(run, config.data.evaluate_split)) as batches:
            samples = config.evaluate.overlay_count
            result = evaluator.evaluate(state.variables(), batches, sample_count=samples)
        notify(observers, "on_evaluation", step, result, run.info)
        return {name: result.metrics[name] for name in SUMMARY}

    return evaluate


def restore(store: CheckpointStore, training: Training, run: Run, batches: Any) -> tuple[TrainState, int] | None:
    """The newest readable checkpoint's state and step, with the input moved to where it was; None: there is none."""
    restored = store.restore_latest(placed_shapes(training.abstract, run.mesh))
    if restored is None:
        return None
    state, data_state, step = restored
    if data_state:  # a converted checkpoint (jaxseg.tools.convert) has none: the input begins at its beginning
        batches.set_state(data_state)
    LOGGER.warning("Going on from the checkpoint of step %d.", step)
    return state, step


def open_train_batches(run: Run) -> Any:
    """The endless stream of this process's rows of the training batches."""
    return train_batches(
        run.config.data,
        run.open_dataset(),
        batch_size=run.config.train.batch_size,
        seed=run.config.seed,
        mean_pixel=run.mean_pixel,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def open_evaluate_batches(run: Run, split: str) -> EvaluateBatches:
    """This process's rows of every batch of a split, each example once."""
    return evaluate_batches(
        run.config.data,
        run.open_dataset(),
        split,
        batch_size=run.config.evaluate.batch_size,
        mean_pixel=run.mean_pixel,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def notify(observers: Sequence[Observer], event: str, *what: Any) -> None:
    """Tells every observer."""
    for observer in observers:
        getattr(observer, event)(*what)
