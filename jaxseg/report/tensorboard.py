"""Event files that TensorBoard shows, written without TensorFlow."""

import atexit
import os
import pathlib
from typing import Any

from tensorboardX import SummaryWriter

from jaxseg.core.types import DatasetInfo
from jaxseg.report.metrics_file import evaluation_record
from jaxseg.report.samples import sample_picture
from jaxseg.train.observer import Observer

FOLDER = "tensorboard"
MAX_PICTURES = 4
FLUSH_SECONDS = 10


class TensorBoardEvents(Observer):
    """Writes `<workdir>/tensorboard/events...`: scalars `train/...` and `evaluate/...`, pictures `samples/...`.

    A resumed run tells TensorBoard to drop what it has seen after the step that the run resumes from.
    """

    def __init__(self, workdir: str | os.PathLike[str]) -> None:
        """Args: workdir: the run's folder."""
        self._folder = pathlib.Path(workdir) / FOLDER
        self._writer: SummaryWriter | None = None

    def on_start(self, config: Any, workdir: str, total_steps: int, start_step: int) -> None:
        """Opens a new event file."""
        self._open(purge_step=start_step + 1)

    def on_log(self, step: int, scalars: dict[str, float]) -> None:
        """Adds the scalars."""
        writer = self._writer or self._open()
        for name, value in scalars.items():
            writer.add_scalar(f"train/{name}", value, step)

    def on_evaluation(self, step: int, result: Any, info: DatasetInfo) -> None:
        """Adds the metrics, the intersection over union of each class, and a few sample pictures."""
        writer = self._writer or self._open()
        record = evaluation_record(step, result, info)
        for name, value in record.items():
            if isinstance(value, float):
                writer.add_scalar(f"evaluate/{name}", value, step)
        for name, value in record["iou"].items():
            if value is not None:
                writer.add_scalar(f"iou/{name}", value, step)
        for i, (image, label, prediction) in enumerate(result.samples[:MAX_PICTURES]):
            picture = sample_picture(image, label, prediction, info)
            writer.add_image(f"samples/{i:02}", picture, step, dataformats="HWC")

    def on_end(self, summary: dict[str, Any]) -> None:
        """Closes the event file."""
        if self._writer is not None:
            atexit.unregister(self._writer.close)
            self._writer.close()
            self._writer = None

    def _open(self, purge_step: int | None = None) -> SummaryWriter:
        self._writer = SummaryWriter(str(self._folder), purge_step=purge_step, flush_secs=FLUSH_SECONDS)
        # A run that is stopped by a signal never reaches on_end.
        atexit.register(self._writer.close)
        return self._writer
