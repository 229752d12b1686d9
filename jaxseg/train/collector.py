"""Python's search for cycles of references, put off where a program is traced."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection inside; also a decorator.

    Tracing makes millions of objects that live as long as the program, and each search goes through all of them: a
    quarter of the time that tracing DeepLabV3+ Xception-65's train step takes (4.2 and 3.1 s), and no memory saved.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
