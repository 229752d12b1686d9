"""Keeps the largest difference of each comparison with a library of others, for a table."""

import json
import os
import pathlib

import numpy as np


def record_difference(name: str, reference: str, difference: float) -> None:
    """Appends one JSON line to the file that $JAXSEG_DIFFERENCES names; does nothing where it names none.

    Args:
      name: what was compared, for example `dice`.
      reference: library with version, and its function.
      difference: the largest absolute (or, where stated in `reference`, relative) difference seen.
    """
    path = os.environ.get("JAXSEG_DIFFERENCES")
    if path:
        line = json.dumps({"name": name, "reference": reference, "difference": float(np.max(difference))})
        with pathlib.Path(path).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
