"""Latest and best are kept; a damaged one is set aside; a full disk leaves the older ones whole."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.train.checkpoint import CheckpointMismatch, CheckpointStore


def state_at(step: int):
    return {"w": jnp.arange(2000.0).reshape(40, 50) + step, "step": jnp.asarray(step, jnp.int32)}


def abstract():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_at(0))


def filled(workdir: pathlib.Path, scores=((1, 0.5), (2, 0.3), (3, None), (4, 0.1))) -> CheckpointStore:
    store = CheckpointStore(workdir, keep=2)
    for step, miou in scores:
        metrics = None if miou is None else {"miou_present": miou}
        store.save(state_at(step), {"position": step}, step=step, metrics=metrics)
    store.wait()
    return store


def test_keeps_the_latest_two_and_the_best(tmp_path):
    store = filled(tmp_path)
    assert store.steps() == [1, 3, 4]
    assert (store.pick("best"), store.pick("latest"), store.pick("3")) == (1, 4, 3)
    store.close()
    again = CheckpointStore(tmp_path, read_only=True)
    assert again.pick("best") == 1
    state, data, step = again.restore_latest(abstract())
    np.testing.assert_array_equal(state["w"], state_at(4)["w"])
    assert (data, step) == ({"position": 4}, 4)
    again.close()


def test_a_step_that_is_not_there_lists_those_that_are(tmp_path):
    store = filled(tmp_path)
    with pytest.raises(JaxsegError, match=r"\[1, 3, 4\]"):
        store.pick("2")
    store.close()


def test_no_checkpoints_says_what_to_do(tmp_path):
    with pytest.raises(JaxsegError, match="Train there first"):
        CheckpointStore(tmp_path, read_only=True)


@pytest.mark.parametrize("part", ["state", "data"])
def test_a_truncated_newest_checkpoint_is_set_aside_and_the_one_before_taken(tmp_path, part, caplog):
    store = filled(tmp_path)
    files = [f for f in (store.directory / "4" / part).rglob("*") if f.is_file()]
    for file in files:
        os.truncate(file, file.stat().st_size // 2)
    assert files
    state, data, step = store.restore_latest(abstract())
    assert (step, data) == (3, {"position": 3})
    np.testing.assert_array_equal(state["w"], state_at(3)["w"])
    assert "step 4 is damaged" in caplog.text
    assert store.steps() == [1, 3]
    store.save(state_at(4), {"position": 4}, step=4)
    store.wait()
    assert store.steps() == [1, 3, 4]
    store.close()


def test_other_arrays_are_named_and_nothing_is_moved(tmp_path):
    store = filled(tmp_path)
    like = abstract()
    wider = like | {"w": jax.ShapeDtypeStruct((40, 51), jnp.float32, sharding=like["w"].sharding), "ema": like["w"]}
    del wider["step"]
    for restore in (store.restore_latest, lambda state: store.restore(state, step=4)):
        with pytest.raises(CheckpointMismatch) as caught:
            restore(wider)
        _, *lines, advice = str(caught.value).splitlines()
        assert advice.startswith("Give the config that it was made with")
        assert sorted(lines) == [
            "  ema: absent there, (40, 50) now",
            "  step: () there, absent now",
            "  w: (40, 50) there, (40, 51) now",
        ]
    many = {f"w{i}": like["w"] for i in range(20)}
    with pytest.raises(CheckpointMismatch, match=r"w15: absent.*\n  \.\.\. and 14 more"):
        store.restore(many, step=4)
    assert store.steps() == [1, 3, 4] and not (tmp_path / "checkpoints_damaged").exists()
    store.close()


def test_when_none_can_be_read_none_is_moved(tmp_path):
    store = filled(tmp_path, scores=((1, None),))
    for file in (store.directory / "1" / "state").rglob("*"):
        if file.is_file():
            os.truncate(file, 0)
    with pytest.raises(JaxsegError, match="can be read"):
        store.restore_latest(abstract())
    assert store.steps() == [1]
    store.close()


FULL_DISK = """
    import resource, signal, sys
    import jax.numpy as jnp
    from jaxseg.core.errors import JaxsegError
    from jaxseg.train.checkpoint import CheckpointMismatch, CheckpointStore
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = CheckpointStore(sys.argv[1], keep=1)
    noise = jnp.sin(jnp.arange(200_000.0))
    store.save({"w": noise}, {"position": 1}, step=1)
    store.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # writing past 20 kB fails, as on a full disk
    try:
        store.save({"w": noise + 1}, {"position": 2}, step=2)
        store.wait()
    except JaxsegError as error:
        print(error)
        print("whole:", store.steps())
        sys.exit(7)
"""


def test_a_full_disk_is_said_and_the_old_checkpoint_survives(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 7, done.stderr
    assert "could not be written" in done.stdout and "Make room" in done.stdout
    store = CheckpointStore(tmp_path, keep=1)
    like = {"w": jax.ShapeDtypeStruct((200_000,), jnp.float32, sharding=jnp.zeros(1).sharding)}
    state, data, step = store.restore_latest(like)
    assert (step, data) == (1, {"position": 1})
    np.testing.assert_allclose(state["w"][:3], np.sin(np.arange(3.0)), atol=1e-6)
    store.close()


KILLED = """
    import os, signal, sys, threading
    import jax.numpy as jnp
    from jaxseg.train.checkpoint import CheckpointMismatch, CheckpointStore
    store = CheckpointStore(sys.argv[1], keep=1)
    noise = jnp.sin(jnp.arange(4_000_000.0))
    store.save({"w": noise}, {"position": 1}, step=1)
    store.wait()
    threading.Timer(float(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    store.save({"w": noise + 1}, {"position": 2}, step=2)
    store.wait()
    threading.Event().wait(60)
"""


@pytest.mark.parametrize("seconds", [0.02, 0.2])
def test_killed_while_writing_leaves_only_whole_checkpoints(tmp_path, seconds):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), str(seconds)], capture_output=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL
    store = CheckpointStore(tmp_path, keep=1)
    like = {"w": jax.ShapeDtypeStruct((4_000_000,), jnp.float32, sharding=jnp.zeros(1).sharding)}
    state, data, step = store.restore_latest(like)
    assert step in (1, 2) and data == {"position": step}
    np.testing.assert_allclose(state["w"][:2], np.sin(np.arange(2.0)) + (step - 1), atol=1e-6)
    store.close()
