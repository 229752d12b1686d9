"""Checkpoints: Orbax, asynchronous, best and latest; the input pipeline's state lies in the same checkpoint."""

import logging
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from jaxseg.core.errors import JaxsegError

LOGGER = logging.getLogger(__name__)
BEST_METRIC = "miou_present"
NAMED = 8  # arrays that a message names


def _primary() -> bool:
    return jax.process_index() == 0


def _score(metrics: Mapping[str, float]) -> float:
    return float(metrics[BEST_METRIC])


class CheckpointMismatch(JaxsegError):
    """A checkpoint whose arrays are not those that it should be restored into."""


class CheckpointStore:
    """The checkpoints of one work directory: the `keep` latest and the best by `miou_present`.

    A checkpoint holds the train state, the Grain iterator's state and the evaluation metrics of its step. Orbax writes
    it beside and renames it when it is whole, so that a killed run never leaves half of one under a final name.
    """

    def __init__(self, workdir: str | pathlib.Path, *, keep: int = 2, read_only: bool = False):
        if keep < 1:
            raise JaxsegError(f"config.checkpoint.keep = {keep} must be at least 1.")
        self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
        if read_only and not self.directory.is_dir():
            raise JaxsegError(f"There are no checkpoints in {workdir}. Train there first, or give another --workdir.")
        self._keep, self._read_only = keep, read_only
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        policies = [
            checkpoint_managers.LatestN(self._keep),
            checkpoint_managers.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            best_fn=_score,
            cleanup_tmp_directories=not self._read_only,
            read_only=self._read_only,
            enable_async_checkpointing=not self._read_only,
        )
        items = ("state", "data")
        return ocp.CheckpointManager(self.directory, item_names=items, options=options)

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: Any, data_state: Any, *, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Starts writing a checkpoint; the training goes on while it is written.

        Raises:
          JaxsegError: the checkpoint before could not be written (disk full); it is gone, the older ones are whole.
        """
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data_state))
        try:
            self._manager.wait_until_finished()
            self._manager.save(step, args=args, metrics=dict(metrics) if metrics else None, force=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise self._write_error(step, error) from error

    def wait(self) -> None:
        """Returns when the last checkpoint is on the disk."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._write_error(None, error) from error

    def _write_error(self, step: int | None, error: Exception) -> JaxsegError:
        free = shutil.disk_usage(self.directory).free / 2**20
        kept = [s for s in self.steps() if s != step]
        return JaxsegError(
            f"A checkpoint could not be written to {self.directory} ({free:.0f} MiB free there): {_first_line(error)}\n"
            f"The checkpoints of the steps {kept} are whole. Make room, then start the same command again."
        )

    def restore(self, abstract_state: Any, *, step: int) -> tuple[Any, Any]:
        """The train state and the data state of one step.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct` with shardings.
          step: one of `steps()`.

        Raises:
          CheckpointMismatch: the checkpoint holds other arrays; nothing is read then. (Orbax would notice while it
            reads, and leave reads behind that report to an event loop which is gone.)
          Exception: whatever Orbax raises for damaged files.
        """
        differing = self._differing_arrays(abstract_state, step)
        if differing:
            more = f"\n  ... and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
            raise CheckpointMismatch(
                f"The checkpoint of step {step} in {self.directory} holds other arrays than this config's:\n"
                + "\n".join(f"  {line}" for line in differing[:NAMED])
                + f"{more}\nGive the config that it was made with, or another --workdir."
            )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state), data=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        return restored["state"], restored["data"]

    def _differing_arrays(self, abstract_state: Any, step: int) -> list[str]:
        """A line for each array that only one side has or whose shape differs, by the checkpoint's metadata."""
        there = _shapes(ocp.PyTreeCheckpointHandler().metadata(self.directory / str(step) / "state").tree)
        here = _shapes(abstract_state)
        return [
            f"{name}: {there.get(name, 'absent')} there, {here.get(name, 'absent')} now"
            for name in dict.fromkeys((*here, *there))
            if there.get(name) != here.get(name)
        ]

    def restore_latest(self, abstract_state: Any) -> tuple[Any, Any, int] | None:
        """The newest checkpoint that can be read, or None where there is none.

        A damaged one is moved to `checkpoints_damaged/` with a warning, and the one before it is taken.

        Raises:
          CheckpointMismatch: the newest one that is whole holds other arrays.
          JaxsegError: there are checkpoints, and none can be read.
        """
        damaged: list[int] = []
        for step in reversed(self.steps()):
            try:
                state, data = self.restore(abstract_state, step=step)
            except CheckpointMismatch:
                raise
            # Orbax raises many kinds for files that are damaged.
            except Exception as error:
                LOGGER.warning(
                    "The checkpoint of step %d is damaged (%s); trying the one before it.", step, _first_line(error)
                )
                damaged.append(step)
                continue
            self._set_aside(damaged)
            return state, data, step
        if damaged:
            raise JaxsegError(
                f"None of the checkpoints {damaged} in {self.directory} can be read. "
                "Take another --workdir, or remove that folder to start again."
            )
        return None

    def _set_aside(self, steps: list[int]) -> None:
        if not steps or self._read_only:
            return
        self._manager.close()
        if _primary():
            aside = self.directory.parent / "checkpoints_damaged"
            aside.mkdir(exist_ok=True)
            for step in steps:
                target = aside / str(step)
                shutil.rmtree(target, ignore_errors=True)
                (self.directory / str(step)).rename(target)
                LOGGER.warning("Moved the damaged checkpoint of step %d to %s.", step, target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints_damaged")
        self._manager = self._open()

    def pick(self, which: str) -> int:
        """The step that `latest`, `best` or a number names.

        Raises:
          JaxsegError: there is no such checkpoint.
        """
        steps = self.steps()
        if not steps:
            raise JaxsegError(
                f"There are no checkpoints in {self.directory}. Train there first, or give another --workdir."
            )
        if which == "latest":
            return steps[-1]
        if which == "best":
            best = self._manager.best_step()
            return best if best is not None else steps[-1]
        if which.isdecimal() and int(which) in steps:
            return int(which)
        raise JaxsegError(f"--checkpoint={which}: take latest, best, or one of the steps {steps}.")

    def close(self) -> None:
        """Waits for what is being written and ends Orbax's threads."""
        self.wait()
        self._manager.close()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path of every array -> its shape."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = ((jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves)
    return {name: tuple(leaf.shape) for name, leaf in named if hasattr(leaf, "shape")}


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
