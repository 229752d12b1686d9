"""What every metric is: counts an image on the device, exact sums or rows on the host, scores at the end."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from jaxseg.core.errors import JaxsegError
from jaxseg.core.names import call_with_options, resolve

Counts = dict[str, Any]
Scores = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of a config: two pure functions. `build(*, num_classes, ...options)` in the file of its name makes it.

    Attributes:
      counts: `(labels, outputs, *, where, size=None) -> {name: [b, ...]}`, one entry an image, under jit on any number
        of devices. Args: `labels` integers `[b, h, w]`; `outputs` what `needs` says; `where` bool `[b, h, w]`, the
        pixels that count; `size` int32 `[b, 2]`, (height, width) of each image without the padding of its batch, None:
        `(h, w)`. An image without a pixel in `where` (it only pads the batch, or is all void) must leave no trace in
        the scores: zeros where entries are added, a flag or NaN where they are kept.
      compute: `{name: array} -> scores`: the int64 sums over all images where `keep` is `sum`, else the rows of all
        images, whose order must not matter. A score is a float; a list of floats is a value per class; a mapping of
        lists is a table (a curve, bins). What is undefined is NaN. The conventions stand in the keys.
      keep: `sum`: entries are integers and are added; `rows`: the entries of every image are kept.
      needs: `labels`: `outputs` are the predicted classes, int32 `[b, h, w]`; `probabilities`: float32 `[b, h, w, c]`.
      on_host: `{name: [b, ...]} -> {name: [n, ...]}` in NumPy: what is left to do with the counts of a batch before
        they are kept, where the device cannot (regions, whose number is known by counting only).
    """

    counts: Callable[..., Counts]
    compute: Callable[[dict[str, np.ndarray]], Scores]
    keep: Literal["sum", "rows"] = "sum"
    needs: Literal["labels", "probabilities"] = "labels"
    on_host: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None

    def state(self, arrays: Mapping[str, np.ndarray] | None = None) -> "State":
        """A state in which nothing is counted, or one with what another's `to_arrays` returned."""
        return State(self, arrays)


class State:
    """What a metric has counted so far, on the host."""

    def __init__(self, metric: Metric, arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """Args: metric: what is counted. arrays: what `to_arrays` of a state of the same metric returned."""
        self.metric = metric
        self._parts: list[dict[str, np.ndarray]] = [_host(arrays)] if arrays else []

    def update(self, counts: Mapping[str, Any]) -> None:
        """Adds the counts of a batch, as `metric.counts` returned them.

        Raises:
          ValueError: entries that are added are no integers, or have another shape than before.
        """
        rows = _host(counts)
        if self.metric.on_host is not None:
            rows = self.metric.on_host(rows)
        if self.metric.keep == "sum":
            for name, value in rows.items():
                if not np.issubdtype(value.dtype, np.integer):
                    raise ValueError(f"counts {name!r} are integers [b, ...], not {value.dtype} {value.shape}")
            rows = {name: value.sum(axis=0, dtype=np.int64) for name, value in rows.items()}
        self._add(rows)

    def merge(self, other: "State") -> None:
        """Adds what another state has counted."""
        for part in list(other._parts):
            self._add(part)

    def compute(self) -> Scores:
        """The scores; raises ValueError where nothing was counted."""
        return self.metric.compute(self.to_arrays())

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The whole state as named arrays, for a file or another process.

        Raises:
          ValueError: nothing was counted.
        """
        if not self._parts:
            raise ValueError("nothing was counted: update the state first")
        if len(self._parts) > 1:
            names = self._parts[0]
            self._parts = [{name: np.concatenate([part[name] for part in self._parts]) for name in names}]
        return dict(self._parts[0])

    def _add(self, part: dict[str, np.ndarray]) -> None:
        if not self._parts or self.metric.keep == "rows":
            self._parts.append(part)
            return
        total = self._parts[0]
        for name, value in part.items():
            if total[name].shape != value.shape:
                raise ValueError(f"counts {name!r} {value.shape} do not fit those so far, {total[name].shape}")
        self._parts = [{name: total[name] + value for name, value in part.items()}]


def make_metrics(config: Any, *, num_classes: int) -> dict[str, Metric]:
    """The metrics that a config names.

    Args:
      config: names, or mappings from a name to the options of that metric's build(), in a sequence or alone:
        `("confusion", {"boundary_f1": {"tolerance_px": 2}})`.
      num_classes: number of classes.

    Returns:
      name -> metric, in the config's order.

    Raises:
      JaxsegError: an unknown name or option (with near matches), a name given twice, or something else than names.
    """
    metrics: dict[str, Metric] = {}
    for name, options in _named_options(config):
        where = f"config.evaluate.metrics.{name}"
        if name in metrics:
            raise JaxsegError(f"config.evaluate.metrics gives {name!r} twice.")
        metric = call_with_options(resolve("metrics", name), options, where=where, num_classes=num_classes)
        if not isinstance(metric, Metric):
            raise JaxsegError(f"{where}: build() returns a {type(metric).__name__}, not a Metric.")
        metrics[name] = metric
    return metrics


def _named_options(config: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for entry in [config] if isinstance(config, str) or hasattr(config, "items") else config:
        items = {entry: {}} if isinstance(entry, str) else entry
        if not hasattr(items, "items") or not all(hasattr(options, "items") for options in items.values()):
            raise JaxsegError(f"config.evaluate.metrics takes names and mappings name -> options, not {entry!r}.")
        for name, options in items.items():
            yield name, dict(options)


def _host(counts: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in counts.items()}
