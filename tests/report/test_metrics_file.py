import json
import math

import pytest

from jaxseg.report.metrics_file import MetricsFile, read_metrics
from tests.report.results import INFO, IOU, result


def run(workdir, steps, *, start=0, stop=None, seconds=1.0):
    """Logs every step and evaluates every fourth, as the train loop does; `stop` is where it is killed."""
    observer = MetricsFile(workdir)
    observer.on_start(None, str(workdir), steps, start)
    for step in range(start + 1, (stop or steps) + 1):
        observer.on_log(step, {"step_seconds": seconds, "learning_rate": 0.1 / 3 / step, "loss": 1 / step})
        if step % 4 == 0:
            observer.on_evaluation(step, result(scale=step / 100), INFO)
    if stop is None:
        observer.on_end({})


def without_times(workdir):
    return [{k: v for k, v in record.items() if k != "step_seconds"} for record in read_metrics(workdir)]


def test_every_digit_is_kept(tmp_path):
    run(tmp_path, 3)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert (
        lines[2]
        == '{"step": 3, "loss": 0.3333333333333333, "learning_rate": 0.011111111111111112, "step_seconds": 1.0}'
    )
    assert json.loads(lines[2])["loss"] == 1 / 3


def test_an_evaluation_holds_the_metrics_and_each_class(tmp_path):
    observer = MetricsFile(tmp_path)
    observer.on_start(None, str(tmp_path), 8, 0)
    observer.on_evaluation(8, result(), INFO)
    (record,) = read_metrics(tmp_path)
    assert record["step"] == 8 and record["images"] == 5
    assert record["iou"] == {"ground": IOU[0], "red": IOU[1], "absent": None}
    assert record["miou_present"] == sum(IOU) / 2
    assert record["frequency_weighted_iou"] == (4 * IOU[0] + 6 * IOU[1]) / 10


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path):
    observer = MetricsFile(tmp_path)
    observer.on_start(None, str(tmp_path), 8, 0)
    observer.on_log(1, {"loss": 2.0})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize("killed_at", [5, 6, 7, 8, 10])
def test_a_resumed_run_leaves_the_file_of_one_that_never_stopped(tmp_path, killed_at):
    run(tmp_path / "whole", 12)
    run(tmp_path / "killed", 12, stop=killed_at, seconds=3.0)
    run(tmp_path / "killed", 12, start=4, seconds=5.0)
    assert without_times(tmp_path / "killed") == without_times(tmp_path / "whole")
    assert [r["step_seconds"] for r in read_metrics(tmp_path / "killed") if "loss" in r] == [3.0] * 4 + [5.0] * 8


def test_a_last_line_cut_short_is_dropped(tmp_path):
    run(tmp_path, 12, stop=6)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    run(tmp_path, 12, start=6)
    # Step 6 itself was lost with its line; what follows is whole.
    assert [r["step"] for r in read_metrics(tmp_path) if "loss" in r] == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
    assert path.read_text().endswith("}\n")


def test_a_run_from_the_beginning_keeps_nothing(tmp_path):
    run(tmp_path, 8, stop=5)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 0, "loss": 9.0}\n')
    run(tmp_path, 4)
    assert [r["step"] for r in read_metrics(tmp_path) if "loss" in r] == [1, 2, 3, 4]


def test_a_finished_run_started_again_replaces_its_last_evaluation(tmp_path):
    run(tmp_path, 4)
    observer = MetricsFile(tmp_path)
    observer.on_start(None, str(tmp_path), 4, 4)
    observer.on_evaluation(4, result(scale=0.5), INFO)
    observer.on_end({})
    evaluations = [r for r in read_metrics(tmp_path) if "iou" in r]
    assert [r["miou_present"] for r in evaluations] == [sum(IOU) / 4]
    assert len(read_metrics(tmp_path)) == 5


def test_what_is_not_finite_is_null(tmp_path):
    observer = MetricsFile(tmp_path)
    observer.on_log(1, {"loss": math.inf, "other": math.nan})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null, "other": null}\n'


def test_lines_that_are_no_records_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n[2]\n\xff\xfe\n{"loss": 3.0}\n{"step": 4}\n{"step": 5}')
    assert read_metrics(path) == [{"step": 1}, {"step": 4}]
    assert read_metrics(tmp_path / "nowhere") == []
