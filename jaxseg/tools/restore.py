"""A checkpoint's variables, for evaluation and prediction."""

import contextlib
import pathlib
from typing import Any

from jaxseg.core.errors import JaxsegError
from jaxseg.train.checkpoint import CheckpointMismatch, CheckpointStore
from jaxseg.train.run import Run, make_training
from jaxseg.train.state import placed_shapes
from jaxseg.train.workdir import differences


def restore_variables(run: Run, workdir: pathlib.Path, checkpoint: str) -> tuple[Any, int]:
    """The variables (averaged parameters where there are any) and the step of a checkpoint.

    Args:
      run: made from the config that the checkpoint was trained with.
      workdir: the training's work directory.
      checkpoint: `latest`, `best` or a step.

    Raises:
      JaxsegError: there is no such checkpoint, it is damaged, or its arrays are not those of the config's network and
        optimiser; names the keys that differ from the training's.
    """
    with contextlib.closing(CheckpointStore(workdir, read_only=True)) as store:
        step = store.pick(checkpoint)
        shapes = placed_shapes(make_training(run).abstract, run.mesh)
        try:
            restored, _ = store.restore(shapes, step=step)
        except CheckpointMismatch as error:
            differing = _other_keys(run, workdir)
            if not differing:
                raise
            raise JaxsegError(
                f"{workdir}: the checkpoint of step {step} does not fit the config. What it was made with differs:\n"
                + "\n".join(differing)
                + "\nGive those values, or the --workdir that belongs to this config."
            ) from error
        # Orbax raises many kinds for files that are damaged.
        except Exception as error:
            reason = (str(error).strip().splitlines() or ["no reason given"])[0][:300]
            raise JaxsegError(
                f"{workdir}: the checkpoint of step {step} cannot be read ({type(error).__name__}: {reason}). It is "
                "probably damaged; try another one with --checkpoint=latest or a step."
            ) from error
    return restored.variables(), step


def _other_keys(run: Run, workdir: pathlib.Path) -> list[str]:
    """A line for each key of the config that the training had otherwise."""
    # Where the first weights came from changes no array.
    return [line for line in differences(workdir, run.noted_config()) if not line.startswith("  config.weights.")]
