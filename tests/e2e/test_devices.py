"""One device, two devices and two processes: the same losses and the same confusion counts."""

import json
import socket

import numpy as np
import pytest

from tests.e2e.runs import command, finish, losses, start

pytestmark = [pytest.mark.slow, pytest.mark.data, pytest.mark.timeout(1800)]  # eight runs, one after another
REAL = "tests/e2e/tiny.py:camvid"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def two_processes(workdir, *flags):
    """Runs both processes to their end."""
    where = (f"--coordinator=127.0.0.1:{free_port()}", "--processes=2")
    second = start(command(workdir, *flags, *where, "--process=1", config=REAL), workdir / "log.1")
    try:
        finish(command(workdir, *flags, *where, "--process=0", config=REAL), workdir / "log.0")
        assert second.wait(timeout=60) == 0, (workdir / "log.1").read_text()[-4000:]
    finally:
        second.kill()
        second.wait()


def test_losses_and_confusion_counts_do_not_depend_on_devices_or_processes(tmp_path):
    one, two, processes = (tmp_path / name for name in ("one", "two", "processes"))
    for folder in (one, two, processes):
        folder.mkdir()
    finish(command(one, config=REAL), one / "log")
    finish(command(two, "--cpu_devices=2", config=REAL), two / "log")
    two_processes(processes)
    assert len(losses(one)) == 10
    for other in (two, processes):
        difference = np.max(np.abs(losses(other) / losses(one) - 1))
        print(f"{other.name}: largest relative difference of a loss {difference:.2e}")
        assert difference < 1e-4

    counts = []
    for flags in ((), ("--cpu_devices=2",)):
        finish(command(one, "--mode=evaluate", *flags, config=REAL), one / "log")
        counts.append(json.loads((one / "evaluation.json").read_text())["confusion"])
    (one / "evaluation.json").unlink()
    two_processes(one, "--mode=evaluate")
    counts.append(json.loads((one / "evaluation.json").read_text())["confusion"])
    assert np.sum(counts[0]) > 101 * 360 * 480 * 0.9
    np.testing.assert_array_equal(counts[0], counts[1])
    np.testing.assert_array_equal(counts[0], counts[2])
