"""A result file says what was run, with what, and what came out."""

import json

import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.tools.record import summarize


def run_folder(path, lines):
    (path / "config.json").write_text('{"seed": 3}')
    (path / "versions.json").write_text('{"jax": "0.10.2"}')
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def log(step, loss, speed):
    return {"step": step, "loss": loss, "images_per_second": speed, "step_seconds": 1 / speed, "input_wait_share": 0.0}


def test_last_best_and_medians(tmp_path):
    lines = [log(1, 2.0, 1.0), log(2, 1.5, 5.0)]
    lines += [{"step": 2, "miou_present": 0.6, "iou": {"road": 0.6}}, log(3, 1.0, 4.0)]
    lines += [{"step": 3, "miou_present": 0.5, "iou": {"road": 0.5}}]
    result = summarize(run_folder(tmp_path, lines))
    assert (result["last"]["step"], result["best"]["step"]) == (3, 2)
    assert result["loss"] == [[1, 2.0], [2, 1.5], [3, 1.0]]
    assert result["median"] == {"images_per_second": 4.0, "step_seconds": 0.25, "input_wait_share": 0.0}
    assert result["config"] == {"seed": 3} and result["made_with"] == {"jax": "0.10.2"}


def test_a_run_without_an_evaluation_is_refused(tmp_path):
    with pytest.raises(JaxsegError, match="no evaluation"):
        summarize(run_folder(tmp_path, [log(1, 2.0, 1.0)]))
