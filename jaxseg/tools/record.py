"""`python -m jaxseg.tools.record WORKDIR RESULT.json`: a finished run as one small file, to be kept beside the code."""

import argparse
import json
import pathlib
import statistics
import sys
from typing import Any

from jaxseg.core.errors import JaxsegError
from jaxseg.core.files import write_text
from jaxseg.report.metrics_file import read_metrics
from jaxseg.train.workdir import read_config

SPEEDS = ("images_per_second", "step_seconds", "input_wait_share")


def summarize(workdir: pathlib.Path) -> dict[str, Any]:
    """What a result file holds: provenance, config, every evaluation, the loss curve and the median speeds.

    Args:
      workdir: a run's folder with metrics.jsonl, config.json and versions.json.

    Returns:
      `made_with`, `config`, `evaluations` (the lines of metrics.jsonl with `iou`), `last`, `best` (by miou_present),
      `loss` as [step, loss] pairs, `median` of images/s, seconds a step and input wait over the log lines.

    Raises:
      JaxsegError: the run has no evaluation, or the folder is no work directory.
    """
    records = read_metrics(workdir)
    evaluations = [r for r in records if "iou" in r]
    logs = [r for r in records if "loss" in r]
    if not evaluations or not logs:
        raise JaxsegError(
            f"{workdir} holds no evaluated run: metrics.jsonl has no evaluation. Let the run finish first."
        )
    made_with = workdir / "versions.json"
    return {
        "made_with": json.loads(made_with.read_text(encoding="utf-8")) if made_with.is_file() else {},
        "config": read_config(workdir),
        "last": evaluations[-1],
        "best": max(evaluations, key=lambda r: r["miou_present"]),
        "evaluations": evaluations,
        "loss": [[r["step"], r["loss"]] for r in logs],
        "median": {key: statistics.median(r[key] for r in logs if key in r) for key in SPEEDS},
    }


def main() -> None:
    """Writes the result file, or says what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m jaxseg.tools.record", description=__doc__)
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("result", type=pathlib.Path)
    arguments = parser.parse_args()
    try:
        write_text(arguments.result, json.dumps(summarize(arguments.workdir), indent=1) + "\n")
    except JaxsegError as error:
        sys.exit(f"jaxseg: {error}")
    print(f"Written: {arguments.result}")


if __name__ == "__main__":
    main()
