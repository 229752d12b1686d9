"""The live bar: step, loss, learning rate, images a second, share of time waiting for input, time left."""

import atexit
import math
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from jaxseg.core.types import DatasetInfo
from jaxseg.train.observer import Observer

PLAIN_LINE_SECONDS = 5.0


class ProgressDisplay(Observer):
    """A bar in a terminal; elsewhere (a file, a pipe, CI) plain lines, at most one in five seconds.

    The first and the last log and every evaluation always get their line.
    """

    def __init__(self, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Args: console: where to write, standard output by default. clock: seconds, for tests."""
        self._console = console if console is not None else Console(highlight=False)
        self._clock = clock
        self._bar: Progress | None = None
        self._total = 0
        self._first: tuple[int, float] | None = None
        self._printed = 0.0

    def on_start(self, config: Any, workdir: str, total_steps: int, start_step: int) -> None:
        """Opens the bar; says where a resumed run goes on."""
        self._total = total_steps
        self._first, self._printed = None, float("-inf")
        begin = f"resumes at step {start_step} of" if start_step else "trains"
        self._print(f"{begin} {total_steps} steps in {workdir}")
        if self._console.is_terminal:
            self._bar = Progress(
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[numbers]}", table_column=Column(no_wrap=True)),
                TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True, min_width=5)),
                TextColumn("left"),
                console=self._console,
                expand=True,
            )
            self._bar.add_task("train", total=total_steps, completed=start_step, numbers="compiling")
            self._bar.start()
            # A run that stops by an error or a signal never reaches on_end; the cursor has to come back all the same.
            atexit.register(self._stop)

    def on_step(self, step: int) -> None:
        """Moves the bar."""
        self._first = self._first or (step, self._clock())
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step)

    def on_log(self, step: int, scalars: dict[str, float]) -> None:
        """Shows the numbers."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, numbers=format_scalars(scalars, short=True))
            return
        now = self._clock()
        if now - self._printed >= PLAIN_LINE_SECONDS or step >= self._total:
            self._printed = now
            self._print(f"step {step}/{self._total}  {format_scalars(scalars)}{self._left(step, now)}")

    def on_evaluation(self, step: int, result: Any, info: DatasetInfo) -> None:
        """Prints the metrics on a line of their own, above the bar."""
        metrics = result.metrics
        self._print(
            f"step {step}: mIoU {_fraction(metrics['miou_present'])} over the classes present, "
            f"pixel accuracy {_fraction(metrics['pixel_accuracy'])}, {result.images} images of {info.name}"
        )

    def on_end(self, summary: dict[str, Any]) -> None:
        """Closes the bar."""
        self._stop()

    def _print(self, text: str) -> None:
        """One line whatever its length: a log that is wrapped at 80 characters cannot be searched."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _stop(self) -> None:
        atexit.unregister(self._stop)
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _left(self, step: int, now: float) -> str:
        """Time left at the mean pace since the first step, whose compilation does not come again."""
        if self._first is None or step <= self._first[0] or step >= self._total:
            return ""
        pace = (now - self._first[1]) / (step - self._first[0])
        seconds = round(pace * (self._total - step))
        hours, minutes = divmod(seconds // 60, 60)
        return f"  {hours}:{minutes:02}:{seconds % 60:02} left" if hours else f"  {minutes}:{seconds % 60:02} left"


def format_scalars(scalars: dict[str, float], *, short: bool = False) -> str:
    """`loss 1.2340  learning rate 0.01  12.3 images/s  input wait 2%`, with those of them that are there.

    Args:
      scalars: what `on_log` gets.
      short: abbreviated, so that a bar fits beside it in 80 columns.
    """
    rate, speed, wait = ("lr", "img/s", "wait") if short else ("learning rate", "images/s", "input wait")
    parts = []
    if "loss" in scalars:
        parts.append(f"loss {scalars['loss']:.4f}")
    if "learning_rate" in scalars:
        parts.append(f"{rate} {scalars['learning_rate']:.3g}")
    if "images_per_second" in scalars:
        parts.append(f"{scalars['images_per_second']:.1f} {speed}")
    if "input_wait_share" in scalars:
        parts.append(f"{wait} {scalars['input_wait_share']:.0%}")
    return "  ".join(parts)


def _fraction(value: float) -> str:
    """A dash for NaN: the metric of a split without a valid pixel."""
    return "-" if math.isnan(value) else f"{value:.4f}"
