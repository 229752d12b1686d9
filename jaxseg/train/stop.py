"""SIGTERM and SIGINT ask the loop to save and stop at the end of the step."""

import logging
import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

LOGGER = logging.getLogger(__name__)
EXIT_CODE = 75
"""Exit status of a run that was stopped and saved: EX_TEMPFAIL, "start the same command again"."""


class Preempted(Exception):
    """The run was asked to stop; its state is saved, the same command goes on from there."""

    def __init__(self, step: int):
        super().__init__(f"Stopped and saved at step {step}. The same command goes on from there.")
        self.step = step


class StopRequest:
    """Within its `with` block the first SIGTERM or SIGINT only sets a flag; a second SIGINT interrupts at once.

    With several processes the one that got the signal tells the others through JAX's preemption sync manager, so that
    all of them stop at the same step.
    """

    def __init__(self) -> None:
        self._flag = threading.Event()
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        single = jax.process_count() == 1
        # jax.distributed has its own SIGTERM handler, which its sync point below reads.
        signals = (signal.SIGTERM, signal.SIGINT) if single else ()
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in signals}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._flag.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        LOGGER.warning("%s: saving at the end of this step, then stopping.", signal.Signals(number).name)
        self._flag.set()

    def requested(self, step: int) -> bool:
        """Whether to save and stop after this step."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._flag.is_set()
