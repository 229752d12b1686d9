"""A checkpoint's variables, for evaluation and prediction."""

import pathlib
from typing import Any

from jaxseg.train.checkpoint import CheckpointStore
from jaxseg.train.run import Run, make_training
from jaxseg.train.state import placed_shapes


def restore_variables(run: Run, workdir: pathlib.Path, checkpoint: str) -> tuple[Any, int]:
    """The variables (averaged parameters where there are any) and the step of a checkpoint.

    Args:
      run: made from the config that the checkpoint was trained with.
      workdir: the training's work directory.
      checkpoint: `latest`, `best` or a step.
    """
    store = CheckpointStore(workdir, read_only=True)
    step = store.pick(checkpoint)
    restored, _ = store.restore(placed_shapes(make_training(run).abstract, run.mesh), step=step)
    store.close()
    return restored.variables(), step
