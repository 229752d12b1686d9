"""How worker processes behave: one thread each, deaf to the signals that the training process handles, gone with it."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

import cv2
from absl import flags

HELD = (signal.SIGINT, signal.SIGTERM)


def start(index: int, count: int) -> None:
    """Runs first in every worker process.

    SIGINT and SIGTERM often reach the whole process group, while the training process still wants batches until it has
    saved; it ends its workers itself. Where it dies without doing so, the worker notices and ends.
    """
    del index, count
    for number in HELD:
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    threading.Thread(target=_end_with_parent, daemon=True, name="end-with-parent").start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A pipe whose other end the parent holds: it closes however the parent ends, SIGKILL included.
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Blocks SIGINT and SIGTERM; processes started within inherit that, so they are deaf from birth, before `start`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Starting the tracker unblocks these signals again, so it has to run before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def shared_memory_holds(size_bytes: int) -> bool:
    """Whether that much is free where shared memory lies; containers often have 64 MB, and writing beyond kills."""
    try:
        state = os.statvfs("/dev/shm")
    except OSError:  # no such folder on this platform: its shared memory has no such limit
        return True
    return state.f_bavail * state.f_frsize > size_bytes


def mark_flags_parsed() -> None:
    """Grain reads absl flags; in a program that has none they must be marked as parsed."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
