"""`--mode=train`: the train loop with the observers that a person sees."""

import pathlib
import sys
import time
from typing import Any

import jax

from jaxseg.report.observers import default_observers
from jaxseg.train.loop import train
from jaxseg.train.observer import Observer
from jaxseg.train.program_store import ProgramStore
from jaxseg.train.run import make_run
from jaxseg.train.stop import EXIT_CODE, Preempted


class FirstStep(Observer):
    """Prints how long the start took, up to the first finished step."""

    def __init__(self, started: float):
        self._started = started
        self._done = False

    def on_step(self, step: int) -> None:
        """Prints once."""
        if not self._done:
            self._done = True
            print(f"First step dispatched {time.perf_counter() - self._started:.1f} s after the start.", flush=True)


def train_mode(config: Any, workdir: pathlib.Path, *, started: float) -> int:
    """Trains; returns 0, or `EXIT_CODE` (75) when SIGTERM or SIGINT stopped and saved the run."""
    primary, cache = jax.process_index() == 0, jax.config.values["jax_compilation_cache_dir"]
    run = make_run(config)
    observers = [*default_observers(str(workdir)), FirstStep(started)] if primary else []
    try:
        train(run, workdir, observers, ProgramStore(pathlib.Path(cache) / "traced") if cache else None)
    except Preempted as stopped:
        if primary:
            print(f"jaxseg: {stopped}", file=sys.stderr)
        return EXIT_CODE
    return 0
