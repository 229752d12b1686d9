import io
import re

from rich.console import Console

from jaxseg.report.progress import ProgressDisplay, format_scalars
from tests.report.results import INFO, result

SCALARS = {
    "loss": 1.23456,
    "learning_rate": 0.007,
    "images_per_second": 12.34,
    "input_wait_share": 0.021,
    "step_seconds": 1,
}


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


def display(*, terminal=False):
    stream, clock = io.StringIO(), Clock()
    console = Console(file=stream, force_terminal=terminal, width=100, highlight=False)
    return ProgressDisplay(console=console, clock=clock), stream, clock


def test_plain_lines_come_at_most_every_five_seconds():
    bar, stream, clock = display()
    bar.on_start(None, "runs/x", 100, 0)
    clock.seconds = 60  # the compilation
    bar.on_step(1)
    for step in range(10, 101, 10):
        clock.seconds += 2
        bar.on_step(step)
        bar.on_log(step, SCALARS)
    bar.on_end({})
    lines = stream.getvalue().splitlines()
    assert lines[0] == "trains 100 steps in runs/x"
    assert lines[1] == "step 10/100  loss 1.2346  learning rate 0.007  12.3 images/s  input wait 2%  0:20 left"
    # At 2, 8, 14, 20 s after the compilation: the first, then the first after five seconds; the last step in any case.
    assert [int(re.match(r"step (\d+)", line)[1]) for line in lines[1:]] == [10, 40, 70, 100]
    assert "left" not in lines[-1]
    assert "\x1b" not in stream.getvalue()


def test_time_left_counts_from_where_the_run_resumed():
    bar, stream, clock = display()
    bar.on_start(None, "runs/x", 10_000, 4_000)
    assert stream.getvalue() == "resumes at step 4000 of 10000 steps in runs/x\n"
    bar.on_log(4_000, SCALARS)
    assert "left" not in stream.getvalue()
    clock.seconds = 50
    bar.on_step(4_000)
    clock.seconds = 150
    bar.on_log(5_000, SCALARS)
    assert stream.getvalue().endswith("  8:20 left\n")  # 5000 steps at 10 a second
    clock.seconds = 2_050
    bar.on_log(5_000, SCALARS)
    assert stream.getvalue().endswith("  2:46:40 left\n")  # at 2 seconds each


def test_an_evaluation_has_a_line_of_its_own():
    bar, stream, _ = display()
    bar.on_start(None, "runs/x", 10, 0)
    bar.on_evaluation(5, result(), INFO)
    expected = "step 5: mIoU 0.5357 over the classes present, pixel accuracy 0.7000, 5 images of tiny"
    assert stream.getvalue().splitlines()[1] == expected


def test_a_terminal_gets_a_bar_and_its_cursor_back():
    bar, stream, _ = display(terminal=True)
    bar.on_start(None, "runs/x", 40, 0)
    bar.on_step(20)
    bar.on_log(20, SCALARS)
    bar.on_evaluation(20, result(), INFO)
    bar.on_end({})
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "20/40" in text and "━" in text
    assert "loss 1.2346  lr 0.007  12.3 img/s  wait 2%" in text
    assert "mIoU 0.5357" in text
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")


def test_only_what_is_known_is_shown():
    assert format_scalars({"loss": 2.0}) == "loss 2.0000"
    assert format_scalars({}) == ""
