"""`report.html`: one page that holds everything it shows, so that it can be sent by mail and opened years later."""

import base64
import io
import json
import os
import pathlib
from typing import Any

import jinja2
from PIL import Image

from jaxseg.core.files import write_text
from jaxseg.core.types import DatasetInfo
from jaxseg.report import curves, samples, table
from jaxseg.report.metrics_file import read_metrics
from jaxseg.train.observer import Observer

FILE_NAME = "report.html"
MAX_PICTURE_PX = 1536
JPEG_QUALITY = 88


class Page(Observer):
    """Writes `<workdir>/report.html` at every evaluation and at the end, from what the other observers left there."""

    def __init__(self, workdir: str | os.PathLike[str]) -> None:
        """Args: workdir: the run's folder."""
        self._workdir = pathlib.Path(workdir)
        self._info: DatasetInfo | None = None

    def on_evaluation(self, step: int, result: Any, info: DatasetInfo) -> None:
        """Writes the page as far as the run has come."""
        self._info = info
        write_text(self._workdir / FILE_NAME, render_page(self._workdir, info=info))

    def on_end(self, summary: dict[str, Any]) -> None:
        """Writes the page of the whole run."""
        write_text(self._workdir / FILE_NAME, render_page(self._workdir, info=self._info))


def render_page(workdir: str | os.PathLike[str], *, info: DatasetInfo | None = None) -> str:
    """The page of a run as HTML, pictures embedded, no script and no link to anything outside.

    Args:
      workdir: a run's folder; what it does not hold is left out of the page.
      info: gives the table its colours.
    """
    workdir = pathlib.Path(workdir)
    records = read_metrics(workdir)
    evaluation = table.last_evaluation(workdir)
    logs = [record for record in records if "loss" in record]
    colors = dict(zip(info.class_names, info.colors, strict=True)) if info else {}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxseg.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=workdir.resolve().name,
        data_set=info.name if info else "",
        last=logs[-1] if logs else None,
        evaluation=evaluation,
        summary=table.summary_rows(evaluation or {}),
        classes=[_class_row(name, value, colors) for name, value in (evaluation or {"iou": {}})["iou"].items()],
        curves=_data_uri(workdir / curves.FILE_NAME),
        samples=_sample_pictures(workdir, evaluation),
        config=_text(workdir / "config.json"),
        versions=_versions(workdir / "versions.json"),
    )


def _class_row(name: str, value: float | None, colors: dict[str, tuple[int, int, int]]) -> dict[str, Any]:
    color = colors.get(name)
    return {
        "name": name,
        "iou": table.format_percent(value),
        "width": f"{100 * (value or 0):.1f}",
        "color": "#{:02x}{:02x}{:02x}".format(*color) if color else "",
    }


def _sample_pictures(workdir: pathlib.Path, evaluation: dict[str, Any] | None) -> list[str]:
    """The pictures of the evaluation that the table shows."""
    if evaluation is None:
        return []
    folder = samples.sample_folder(workdir, evaluation["step"])
    return [_jpeg_uri(path) for path in sorted(folder.glob("*.png"))]


def _jpeg_uri(path: pathlib.Path) -> str:
    """A picture small enough to be embedded by the dozen."""
    buffer = io.BytesIO()
    with Image.open(path) as file:
        picture = file.convert("RGB")
        picture.thumbnail((MAX_PICTURE_PX, MAX_PICTURE_PX))
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _data_uri(path: pathlib.Path) -> str:
    if not path.is_file():
        return ""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _text(path: pathlib.Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _versions(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
