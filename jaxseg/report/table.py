"""The table at the end: intersection over union of every class and the summary metrics."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxseg.core.files import write_text
from jaxseg.core.types import DatasetInfo
from jaxseg.report.metrics_file import evaluation_record, read_metrics
from jaxseg.train.observer import Observer

FILE_NAME = "evaluation.txt"

SUMMARY = {
    "miou_present": "mIoU, classes present",
    "miou_all": "mIoU, all classes",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean class accuracy",
    "frequency_weighted_iou": "frequency-weighted IoU",
    "f1_present": "F1 (Dice), classes present",
    "precision_present": "precision, classes present",
    "recall_present": "recall, classes present",
    "cohen_kappa": "Cohen's kappa",
}
LEFT_OUT = ("step", "images", "f1_all", "precision_all", "recall_all")


class EvaluationTable(Observer):
    """Writes `<workdir>/evaluation.txt` at every evaluation and prints the last table when the run ends."""

    def __init__(self, workdir: str | os.PathLike[str], *, console: Console | None = None) -> None:
        """Args: workdir: the run's folder. console: where to print, standard output by default."""
        self._workdir = pathlib.Path(workdir)
        self._console = console if console is not None else Console(highlight=False)
        self._record: dict[str, Any] | None = None

    def on_evaluation(self, step: int, result: Any, info: DatasetInfo) -> None:
        """Writes the table as text."""
        self._record = evaluation_record(step, result, info)
        write_text(self._workdir / FILE_NAME, evaluation_text(self._record))

    def on_end(self, summary: dict[str, Any]) -> None:
        """Prints the table; a run that had nothing left to do prints the one of its metrics file."""
        record = self._record or last_evaluation(self._workdir)
        if record is not None:
            print_evaluation(record, console=self._console)


def last_evaluation(workdir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The record of the last evaluation in a run's metrics file, None where there was none."""
    evaluations = [record for record in read_metrics(workdir) if isinstance(record.get("iou"), dict)]
    return evaluations[-1] if evaluations else None


def print_table(result: Any, info: DatasetInfo, *, step: int | None = None, console: Console | None = None) -> None:
    """`print_evaluation` of an `EvaluationResult`.

    Args:
      result: with `metrics` and `images`.
      info: names the classes.
      step: number of steps trained, left out of the title where it is not known.
      console: where to print, standard output by default.
    """
    record = evaluation_record(0 if step is None else step, result, info)
    if step is None:
        del record["step"]
    print_evaluation(record, console=console)


def print_evaluation(record: Mapping[str, Any], *, console: Console | None = None) -> None:
    """Prints a table with rules in a terminal, the text of `evaluation_text` elsewhere.

    Args:
      record: what `evaluation_record` returns.
      console: where to print, standard output by default.
    """
    console = console if console is not None else Console(highlight=False)
    if not console.is_terminal:
        console.print(evaluation_text(record), end="", markup=False, highlight=False, soft_wrap=True)
        return
    table = Table(title=_title(record))
    table.add_column("class")
    table.add_column("IoU", justify="right")
    for name, value in record["iou"].items():
        table.add_row(name, format_percent(value))
    table.add_section()
    for name, value in summary_rows(record):
        table.add_row(name, value, style="bold")
    console.print(table)


def evaluation_text(record: Mapping[str, Any]) -> str:
    """The table as plain text: a title, a row a class, a row a summary metric; values in per cent, two decimals."""
    rows = [(name, format_percent(value)) for name, value in record["iou"].items()]
    summary = summary_rows(record)
    width = max(len(name) for name, _ in rows + summary)
    lines = [f"{name:<{width}}  {value:>7}" for name, value in [("class", "IoU"), *rows]]
    rule = "-" * (width + 9)
    lines = [_title(record), rule, lines[0], rule, *lines[1:], rule]
    lines += [f"{name:<{width}}  {value:>7}" for name, value in summary]
    return "\n".join(lines) + "\n"


def summary_rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The summary metrics of a record, under the names that people read; those of further metrics as they are."""
    rows = [(title, format_percent(record[key])) for key, title in SUMMARY.items() if key in record]
    for key, value in record.items():
        if key not in SUMMARY and key not in LEFT_OUT and not isinstance(value, Mapping):
            rows.append((key.replace("_", " "), "-" if value is None else f"{value:.4f}"))
    return rows


def format_percent(value: float | None) -> str:
    """`61.23%`; a dash for a class that is neither in the labels nor predicted."""
    return "-" if value is None else f"{100 * value:.2f}%"


def _title(record: Mapping[str, Any]) -> str:
    step = f"step {record['step']}, " if "step" in record else ""
    return f"{step}{record['images']} images"
