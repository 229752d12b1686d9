"""`metrics.jsonl`: one JSON object a line, the record of the run from which curves and tables are drawn."""

import json
import math
import os
import pathlib
from typing import Any

from jaxseg.core.files import write_text
from jaxseg.core.types import DatasetInfo
from jaxseg.evaluate.split import scores_by_class
from jaxseg.train.observer import Observer

FILE_NAME = "metrics.jsonl"
FIRST_KEYS = ("loss", "learning_rate")


class MetricsFile(Observer):
    """Appends a line to `<workdir>/metrics.jsonl` at every log and every evaluation; the file is closed in between.

    Lines of `on_log` hold `step` and the scalars; lines of `on_evaluation` hold `step`, `images`, the metrics and `iou`
    as a mapping from class name. Numbers have all their digits (`float.__repr__`); what is not finite is null.

    A resumed run first drops the lines after the step that it resumes from, and a last line that a kill cut short, so
    that the file becomes the one of a run that never stopped, but for the keys that measure time. A second evaluation
    of the same step (a finished run is started again) takes the place of the first.
    """

    def __init__(self, workdir: str | os.PathLike[str]) -> None:
        """Args: workdir: the run's folder."""
        self.path = pathlib.Path(workdir) / FILE_NAME
        self._last_evaluated: int | None = None

    def on_start(self, config: Any, workdir: str, total_steps: int, start_step: int) -> None:
        """Drops what lies after `start_step`; everything when the run starts from the beginning."""
        kept = [r for r in read_metrics(self.path) if r["step"] <= start_step] if start_step > 0 else []
        self._rewrite(kept)
        self._last_evaluated = max((r["step"] for r in kept if "iou" in r), default=None)

    def on_log(self, step: int, scalars: dict[str, float]) -> None:
        """Writes the scalars, those that people look for first."""
        first = {name: scalars[name] for name in FIRST_KEYS if name in scalars}
        self._write({"step": int(step), **first, **scalars})

    def on_evaluation(self, step: int, result: Any, info: DatasetInfo) -> None:
        """Writes the metrics, the intersection over union of each class under its name."""
        if self._last_evaluated == step:
            self._rewrite([r for r in read_metrics(self.path) if not (r["step"] == step and "iou" in r)])
        self._write(evaluation_record(step, result, info))
        self._last_evaluated = int(step)

    def _rewrite(self, records: list[dict[str, Any]]) -> None:
        write_text(self.path, "".join(_line(record) for record in records))

    def _write(self, record: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_line(record))


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The whole records of a metrics file, in order; none where there is no file.

    Args:
      path: the file, or the work directory that holds it.

    Returns:
      Dictionaries with at least `step`. Lines that are not such an object (one cut short by a kill) are left out.
    """
    path = pathlib.Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            record = json.loads(line) if line.endswith("\n") else None
        except json.JSONDecodeError:
            record = None
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def evaluation_record(step: int, result: Any, info: DatasetInfo) -> dict[str, Any]:
    """What the metrics file says of an `EvaluationResult`; the table is drawn from it as well.

    Args:
      step: number of steps trained.
      result: the evaluation's result, with `metrics` and `images`.
      info: names the classes.

    Returns:
      `step`, `images`, then the scalar metrics, then the others: lists as mappings class name -> float (None for an
      absent class), tables as they are; `iou` is the last.
    """
    content = scores_by_class(result.metrics, info)
    scalars = {name: value for name, value in content.items() if not isinstance(value, dict)}
    others = {name: value for name, value in content.items() if name not in scalars and name != "iou"}
    return {"step": int(step), "images": int(result.images), **scalars, **others, "iou": content["iou"]}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _line(record: dict[str, Any]) -> str:
    """JSON knows no NaN: null stands for it."""
    plain: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict | str | bool | int) or value is None:
            plain[name] = value
        else:
            plain[name] = _finite(float(value))
    return json.dumps(plain, allow_nan=False) + "\n"
