"""Worker processes: deaf to SIGTERM, gone with the process that started them, errors by name."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxseg.core.errors import BadExampleError
from jaxseg.data.pipeline import _iterate, train_batches

PROGRAM = """
import json, pathlib, sys, time

from jaxseg.data.dataset import Dataset
from jaxseg.data.catalog.camvid import INFO
from jaxseg.data.pipeline import train_batches

if __name__ == "__main__":
    config = json.loads(sys.argv[1])
    batches = train_batches(config, Dataset(INFO, sys.argv[2]), batch_size=2, seed=0, mean_pixel=(0, 0, 0))
    next(batches)
    print("ready", flush=True)
    for line in sys.stdin:
        print(next(batches)["index"].tolist(), flush=True)
    batches.close()
"""


def children(pid: int) -> list[int]:
    tasks = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def running(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def trainer(tmp_path, camvid_config, camvid):
    script = tmp_path / "trainer.py"
    script.write_text(PROGRAM)
    config = json.dumps(camvid_config | {"workers": 2})
    process = subprocess.Popen(
        [sys.executable, str(script), config, str(camvid.directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == "ready\n"
    with process:
        yield process
        process.kill()


@pytest.mark.skipif(not pathlib.Path("/proc/self/task").is_dir(), reason="reads /proc")
def test_workers_survive_sigterm_and_end_with_their_parent(trainer):
    started = children(trainer.pid)
    assert len(started) >= 3  # two workers and the tracker of shared memory
    for pid in started:
        os.kill(pid, signal.SIGTERM)
    for _ in range(8):  # more than what was ready before
        trainer.stdin.write("\n")
        trainer.stdin.flush()
        assert trainer.stdout.readline().startswith("[")
    trainer.kill()
    deadline = time.monotonic() + 15
    while any(map(running, started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in started if running(pid)]


@pytest.mark.skipif(not pathlib.Path("/proc/self/task").is_dir(), reason="reads /proc")
def test_closing_ends_the_workers(trainer):
    started = children(trainer.pid)
    _, errors = trainer.communicate(timeout=30)
    assert (trainer.returncode, errors) == (0, "")
    ended = time.monotonic() + 20  # a process that is told to end needs a moment on a busy machine
    while any(running(pid) for pid in started) and time.monotonic() < ended:
        time.sleep(0.05)
    assert not [pid for pid in started if running(pid)]


@pytest.mark.skipif(not pathlib.Path("/proc/self/task").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("taken", (0, 1))
def test_prefetch_starts_the_workers_before_the_first_batch_is_asked_for(camvid_config, camvid, taken):
    config = camvid_config | {"workers": 2}
    before = set(children(os.getpid()))
    batches = train_batches(config, camvid, batch_size=2, seed=0, mean_pixel=(0, 0, 0))
    batches.start_prefetch()
    ends = time.monotonic() + 30
    while len(set(children(os.getpid())) - before) < 2 and time.monotonic() < ends:
        time.sleep(0.05)
    started = set(children(os.getpid())) - before
    assert len(started) >= 2
    assert batches.get_state()["next_batch"] == 0
    with contextlib.closing(train_batches(config, camvid, batch_size=2, seed=0, mean_pixel=(0, 0, 0))) as plain:
        for _ in range(taken):
            assert next(batches)["index"].tolist() == next(plain)["index"].tolist()
    batches.close()
    ends = time.monotonic() + 20
    while any(running(pid) for pid in started) and time.monotonic() < ends:
        time.sleep(0.05)
    assert len([pid for pid in started if running(pid)]) <= 1  # the tracker of shared memory, where this started it


class Failing:
    """A source whose third row is bad."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index == 2:
            raise BadExampleError("a.png: broken. Copy it anew.")
        return {"index": np.int32(index)}


def test_an_error_in_a_worker_arrives_with_its_sentence():
    batches = _iterate(Failing(), rows=2, workers_count=1, depth=1)
    assert next(batches)["index"].tolist() == [0, 1]
    with pytest.raises(BadExampleError, match=r"a\.png: broken\. Copy it anew\."):
        next(batches)
    batches.close()
