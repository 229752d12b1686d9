"""Times of works that take turns, so that what else the machine does meets all of them alike."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Timing:
    """Times of one work, a number a turn.

    Attributes:
      seconds: on the wall clock.
      cpu_seconds: of the process, summed over its threads; what a busy machine makes slower shows here less.
    """

    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the wall clock's seconds."""
        return statistics.median(self.seconds)

    def a_step(self, number: int) -> "Timing":
        """The times of one of the `number` steps that a turn was."""
        return Timing(tuple(t / number for t in self.seconds), tuple(t / number for t in self.cpu_seconds))

    def to_json(self) -> dict[str, Any]:
        """`median`, `min`, `quartiles` (lower, upper), `cpu_median`, `cpu_min` in seconds, and how many `steps`."""
        if len(self.seconds) > 1:
            lower, _, upper = statistics.quantiles(self.seconds, n=4, method="inclusive")
        else:
            lower = upper = self.seconds[0]
        return {
            "steps": len(self.seconds),
            "median": self.median,
            "min": min(self.seconds),
            "quartiles": [lower, upper],
            "cpu_median": statistics.median(self.cpu_seconds),
            "cpu_min": min(self.cpu_seconds),
        }


def alternate(
    works: Mapping[str, Callable[[], Any]],
    *,
    steps: int,
    warmup_steps: int,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> dict[str, Timing]:
    """Calls the works in turn, a, b, a, b, ...: `warmup_steps` turns that are not timed, then `steps` that are.

    Args:
      works: by name; a call returns when its result is there.
      steps: turns that count, at least 1.
      warmup_steps: turns before.
      clock, cpu_clock: seconds.
    """
    for _ in range(warmup_steps):
        for work in works.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(steps):
        for name, work in works.items():
            cpu_began, began = cpu_clock(), clock()
            work()
            seconds[name].append(clock() - began)
            cpu_seconds[name].append(cpu_clock() - cpu_began)
    return {name: Timing(tuple(seconds[name]), tuple(cpu_seconds[name])) for name in works}


def ratios(ours: Timing, theirs: Timing) -> dict[str, float]:
    """Ours over theirs: `ratio` of the medians, `ratio_of_minima`, `ratio_of_cpu_medians`; below 1 we are faster."""
    mine, other = ours.to_json(), theirs.to_json()
    pairs = {"ratio": "median", "ratio_of_minima": "min", "ratio_of_cpu_medians": "cpu_median"}
    return {name: mine[key] / other[key] for name, key in pairs.items() if other[key] > 0}
