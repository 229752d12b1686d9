"""Times and values between two log lines."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxseg.core.errors import NonFiniteLossError


class Meter:
    """Images a second, seconds a step and the share of time spent waiting for input, since the last reading."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Forgets what was measured, so that an evaluation does not count as training time."""
        self._began, self._waited, self._steps = time.perf_counter(), 0.0, 0

    def timed_input(self, fetch: Callable[[], Any]) -> Any:
        """Calls `fetch` for one step's batch and counts the wait."""
        began = time.perf_counter()
        batch = fetch()
        self._waited += time.perf_counter() - began
        self._steps += 1
        return batch

    def read(self) -> dict[str, float]:
        """`images_per_second`, `step_seconds`, `input_wait_share`; then starts again."""
        seconds = max(time.perf_counter() - self._began, 1e-9)
        values = {
            "images_per_second": self._steps * self._batch_size / seconds,
            "step_seconds": seconds / max(self._steps, 1),
            "input_wait_share": self._waited / seconds,
        }
        self.restart()
        return values


class StepResult:
    """A step's metrics on the device; reading them waits for the step."""

    def __init__(self, step: int, index: np.ndarray, metrics: dict[str, Any]):
        self.step, self._index, self._metrics = step, index, metrics

    def check(self, name_of: Callable[[int], str]) -> None:
        """Raises NonFiniteLossError if the loss of this step is not finite.

        Args:
          name_of: example index -> file name, for the message.
        """
        loss = float(self._metrics["loss"])
        if math.isfinite(loss):
            return
        # A process holds and names its own rows only; along the space axis they are repeated.
        shards = {s.index[0].start or 0: np.asarray(s.data) for s in self._metrics["row_finite"].addressable_shards}
        finite = np.concatenate([shards[start] for start in sorted(shards)])
        bad = [int(i) for i, fine in zip(self._index, finite, strict=True) if not fine] or self._index.tolist()
        raise NonFiniteLossError(
            f"The loss is {loss} at step {self.step}, on the examples {', '.join(name_of(i) for i in bad)}.\n"
            "Nothing of this step was saved; the checkpoint before it is whole. Look at these examples, lower "
            "config.optimizer.schedule.base, or set config.train.clip_norm; then start the same command again."
        )

    def values(self) -> dict[str, float]:
        """The scalars as Python numbers; the terms of a loss that has several as `loss/<name>`."""
        terms = {f"loss/{name}": value for name, value in self._metrics.get("terms", {}).items()}
        scalars = {name: self._metrics[name] for name in ("loss", "learning_rate", "gradient_norm")}
        return {name: float(value) for name, value in (scalars | terms).items()}
