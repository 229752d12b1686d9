"""`--mode=evaluate`: any split with a checkpoint's weights, written to evaluation.json."""

import contextlib
import pathlib
from typing import Any

import jax

from jaxseg.evaluate.split import write_evaluation
from jaxseg.report.table import print_table
from jaxseg.tools.restore import restore_variables
from jaxseg.train.loop import open_evaluate_batches
from jaxseg.train.run import make_run
from jaxseg.train.workdir import versions


def evaluate_mode(config: Any, workdir: pathlib.Path, *, split: str | None, checkpoint: str) -> int:
    """Writes `<workdir>/evaluation.json` (`evaluation_<split>.json` for another split) and prints the table."""
    run = make_run(config)
    split = split or config.data.evaluate_split
    variables, step = restore_variables(run, workdir, checkpoint)
    with contextlib.closing(open_evaluate_batches(run, split)) as batches:
        result = run.evaluator().evaluate(variables, batches)
    if jax.process_index() == 0:
        name = "evaluation.json" if split == config.data.evaluate_split else f"evaluation_{split}.json"
        write_evaluation(workdir / name, result, run.info, {"split": split, "step": step, "versions": versions()})
        print_table(result, run.info)
        print(f"Written: {workdir / name}")
    return 0
