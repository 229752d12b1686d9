import io
import math

from rich.console import Console

from jaxseg.report.metrics_file import MetricsFile, read_metrics
from jaxseg.report.table import EvaluationTable, evaluation_text, last_evaluation, print_table
from tests.report.results import INFO, result

TEXT = """\
step 8, 5 images
-------------------------------
class                       IoU
-------------------------------
ground                   50.00%
red                      57.14%
absent                        -
-------------------------------
mIoU, classes present    53.57%
mIoU, all classes        35.71%
pixel accuracy           70.00%
mean class accuracy      70.83%
frequency-weighted IoU   54.29%
"""


def console(*, terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=80, highlight=False)


def test_the_file_and_the_plain_table_are_the_same_text(tmp_path):
    out = console()
    observer = EvaluationTable(tmp_path, console=out)
    observer.on_evaluation(4, result(scale=0.5), INFO)
    observer.on_evaluation(8, result(), INFO)
    assert out.file.getvalue() == ""
    observer.on_end({})
    assert (tmp_path / "evaluation.txt").read_text() == TEXT
    assert out.file.getvalue() == TEXT


def test_a_terminal_gets_a_table_with_rules():
    out = console(terminal=True)
    print_table(result(), INFO, console=out)
    text = out.file.getvalue()
    assert "│ red" in text and "57.14%" in text and "54.29%" in text
    assert "step" not in text and "5 images" in text


def test_a_run_without_anything_left_to_do_prints_what_its_metrics_file_says(tmp_path):
    metrics = MetricsFile(tmp_path)
    metrics.on_start(None, str(tmp_path), 8, 0)
    metrics.on_evaluation(8, result(), INFO)
    metrics.on_log(9, {"loss": 1.0})
    out = console()
    EvaluationTable(tmp_path, console=out).on_end({})
    assert out.file.getvalue() == TEXT


def test_further_metrics_stand_below_and_in_the_metrics_file(tmp_path):
    found = result()
    found.metrics.update(
        {
            "f1_present": 0.25,
            "f1_all": 0.2,
            "f1": [0.5, 0.25, math.nan],
            "hd95_max": 12.5,
            "boundary_f1": math.nan,
            "reliability": {"pixels": [3.0, 0.0], "accuracy": [1.0, math.nan]},
        }
    )
    metrics = MetricsFile(tmp_path)
    metrics.on_start(None, str(tmp_path), 8, 0)
    metrics.on_evaluation(8, found, INFO)
    (record,) = read_metrics(tmp_path)
    assert record["f1"] == {"ground": 0.5, "red": 0.25, "absent": None} and record["hd95_max"] == 12.5
    assert record["reliability"] == {"pixels": [3.0, 0.0], "accuracy": [1.0, None]} and record["boundary_f1"] is None
    summary = evaluation_text(record).splitlines()[-4:]
    assert [line.split("  ")[0] for line in summary] == [
        "frequency-weighted IoU",
        "F1 (Dice), classes present",
        "hd95 max",
        "boundary f1",
    ]
    assert [line.split()[-1] for line in summary] == ["54.29%", "25.00%", "12.5000", "-"]


def test_without_an_evaluation_there_is_no_table(tmp_path):
    out = console()
    EvaluationTable(tmp_path, console=out).on_end({})
    assert out.file.getvalue() == "" and last_evaluation(tmp_path) is None
