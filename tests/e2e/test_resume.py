"""A run that is killed, terminated or damaged ends bit for bit like the run that was left alone."""

import random
import signal
import time

import pytest

from tests.e2e.runs import assert_same_run, command, finish, metrics, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS = 30


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    finish(command(workdir), workdir / "log")
    return workdir


def wait_for(condition, process, seconds=200.0):
    """Polls until the condition holds; the process must still be running then."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < end, "the run did not get there"
        time.sleep(0.002)


def steps_done(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text().count('"loss"') if path.exists() else 0


def writing(workdir):
    folder = workdir / "checkpoints"
    return folder.is_dir() and any("tmp" in p.name for p in folder.iterdir())


def test_killed_at_a_random_step_and_while_a_checkpoint_is_written(whole, tmp_path):
    seed = random.randrange(1000)
    # Past step 10, whose checkpoint waits for the one of step 5: there is one to go on from.
    stop_at = random.Random(seed).randint(11, 18)
    print(f"seed {seed}: SIGKILL after step {stop_at}, then while a checkpoint after that is being written")
    log = tmp_path / "log"
    process = start(command(tmp_path), log)
    wait_for(lambda: steps_done(tmp_path) >= stop_at, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL

    process = start(command(tmp_path), log)
    wait_for(lambda: steps_done(tmp_path) > stop_at and writing(tmp_path), process)
    process.kill()
    assert process.wait() == -signal.SIGKILL

    text = finish(command(tmp_path), log)
    assert text.count("Going on from the checkpoint of step") == 2
    assert_same_run(whole, tmp_path, STEPS)


def test_sigterm_saves_and_exits_with_its_own_status(whole, tmp_path):
    log = tmp_path / "log"
    process = start(command(tmp_path, "--config.checkpoint.every_steps=1000"), log)
    wait_for(lambda: steps_done(tmp_path) >= 7, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert "Stopped and saved at step" in log.read_text()
    saved = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdecimal()]
    assert len(saved) == 1 and saved[0] >= 7
    finish(command(tmp_path), log)
    assert_same_run(whole, tmp_path, STEPS)


def test_a_finished_run_started_again_changes_nothing(whole):
    before = metrics(whole)
    text = finish(command(whole), whole / "log.again")
    assert "mIoU" in text or "miou" in text
    assert [line for line in metrics(whole) if "loss" in line] == [line for line in before if "loss" in line]


def test_a_run_without_worker_processes_is_the_same_run(whole, tmp_path):
    finish(command(tmp_path, "--config.data.workers=0"), tmp_path / "log")
    assert_same_run(whole, tmp_path, STEPS)
