"""`--mode=evaluate`: any split with a checkpoint's weights, written to evaluation.json."""

import contextlib
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jaxseg.core.errors import JaxsegError
from jaxseg.core.names import close_matches
from jaxseg.core.normalize import normalize
from jaxseg.core.types import Batch
from jaxseg.evaluate.batch_statistics import recompute_batch_statistics
from jaxseg.evaluate.split import write_evaluation
from jaxseg.report.table import print_table
from jaxseg.tools.restore import restore_variables
from jaxseg.train.loop import open_evaluate_batches
from jaxseg.train.run import Run, make_run
from jaxseg.train.workdir import versions

BATCH_STATISTICS = ("running", "recomputed")


def with_batch_statistics(run: Run, variables: Any) -> Any:
    """The variables with the statistics that `config.evaluate.batch_statistics` asks for; dropout is on meanwhile.

    Raises:
      JaxsegError: an unknown value, or several processes: each would see its own part of the training set.
    """
    kind = run.config.evaluate.get("batch_statistics", "running")
    if kind not in BATCH_STATISTICS:
        where = f"config.evaluate.batch_statistics {kind!r} does not exist."
        raise JaxsegError(f"{where} {close_matches(kind, BATCH_STATISTICS)}")
    if kind == "running":
        return variables
    if jax.process_count() > 1:
        raise JaxsegError("config.evaluate.batch_statistics = 'recomputed' works in one process alone.")
    variables = jax.device_get(variables)
    with contextlib.closing(open_evaluate_batches(run, run.config.data.train_split)) as batches:
        return recompute_batch_statistics(run.model, variables, _normalized(run, batches))


def _normalized(run: Run, batches: Iterable[Batch]) -> Iterator[jax.Array]:
    """The images without padding rows and padding pixels; one by one where a batch's sizes differ."""
    for batch in batches:
        real = np.flatnonzero(np.asarray(batch["index"]) >= 0)
        images = np.asarray(batch["image"])
        sizes = [tuple(batch["size"][i]) if "size" in batch else images.shape[1:3] for i in real]
        groups = [real] if len(set(sizes)) == 1 else [real[i : i + 1] for i in range(len(real))]
        for rows in groups:
            height, width = sizes[int(np.flatnonzero(real == rows[0])[0])]
            yield normalize(images[rows, :height, :width], mean=run.image_mean, std=run.image_std)


def evaluate_mode(config: Any, workdir: pathlib.Path, *, split: str | None, checkpoint: str) -> int:
    """Writes `<workdir>/evaluation.json` (`evaluation_<split>.json` for another split) and prints the table."""
    run = make_run(config)
    split = split or config.data.evaluate_split
    variables, step = restore_variables(run, workdir, checkpoint)
    variables = with_batch_statistics(run, variables)
    with contextlib.closing(open_evaluate_batches(run, split)) as batches:
        result = run.evaluator().evaluate(variables, batches)
    if jax.process_index() == 0:
        name = "evaluation.json" if split == config.data.evaluate_split else f"evaluation_{split}.json"
        write_evaluation(workdir / name, result, run.info, {"split": split, "step": step, "versions": versions()})
        print_table(result, run.info)
        print(f"Written: {workdir / name}")
    return 0
