"""The observers that a run has by default."""

import os

from jaxseg.report.curves import Curves
from jaxseg.report.metrics_file import MetricsFile
from jaxseg.report.page import Page
from jaxseg.report.progress import ProgressDisplay
from jaxseg.report.samples import Samples
from jaxseg.report.table import EvaluationTable
from jaxseg.report.tensorboard import TensorBoardEvents
from jaxseg.train.observer import Observer


def default_observers(workdir: str | os.PathLike[str]) -> list[Observer]:
    """The observers of a run, in the order in which they are to be called. Only process 0 has any.

    The order matters: the metrics file is written before the curves read it, and the page embeds what the others drew.

    Args:
      workdir: the run's folder; every file goes there.
    """

    return [
        MetricsFile(workdir),
        TensorBoardEvents(workdir),
        Samples(workdir),
        Curves(workdir),
        ProgressDisplay(),
        EvaluationTable(workdir),
        Page(workdir),
    ]
