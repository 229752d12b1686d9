"""`curves.png`: loss, learning rate and mIoU over the steps, drawn from the metrics file."""

import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxseg.core.files import write_bytes
from jaxseg.core.types import DatasetInfo
from jaxseg.report.metrics_file import read_metrics
from jaxseg.train.observer import Observer

FILE_NAME = "curves.png"
COLOR = "#1f5fa8"
FAINT = "#9db8d6"
SMOOTHING_LINES = 50


class Curves(Observer):
    """Draws `<workdir>/curves.png` anew at every evaluation and at the end."""

    def __init__(self, workdir: str | os.PathLike[str]) -> None:
        """Args: workdir: the run's folder, where metrics.jsonl is."""
        self._workdir = pathlib.Path(workdir)

    def on_evaluation(self, step: int, result: Any, info: DatasetInfo) -> None:
        """Draws what the metrics file holds so far."""
        self._draw()

    def on_end(self, summary: dict[str, Any]) -> None:
        """Draws the whole run."""
        self._draw()

    def _draw(self) -> None:
        write_bytes(self._workdir / FILE_NAME, curves_png(read_metrics(self._workdir)))


def curves_png(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Three graphs beside each other as a PNG file.

    Args:
      records: lines of a metrics file; those with `loss`, `learning_rate` or `miou_present` are drawn.

    Returns:
      the PNG file. Agg is used through its own canvas, so that no display and no global state is touched.
    """
    figure = Figure(figsize=(12, 3.4), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    loss, rate, miou = figure.subplots(1, 3)
    steps, values = curve(records, "loss")
    if len(values) >= SMOOTHING_LINES:
        loss.plot(steps, values, color=FAINT, linewidth=0.8)
        loss.plot(steps, running_mean(values, len(values) // SMOOTHING_LINES + 4), color=COLOR)
    else:
        loss.plot(steps, values, color=COLOR)
    rate.plot(*curve(records, "learning_rate"), color=COLOR)
    miou.plot(*curve(records, "miou_present"), color=COLOR, marker="o", markersize=3)
    miou.set_ylim(0, 1)
    for axes, title in ((loss, "loss"), (rate, "learning rate"), (miou, "mIoU, classes present")):
        _dress(axes, title)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return buffer.getvalue()


def curve(records: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one key, where a record has a number for it."""
    points = [(record["step"], float(record[key])) for record in records if isinstance(record.get(key), int | float)]
    return [step for step, _ in points], [value for _, value in points]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values at each position (of those there are, at the beginning)."""
    means = []
    for i in range(len(values)):
        recent = values[max(0, i + 1 - window) : i + 1]
        means.append(sum(recent) / len(recent))
    return means


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
