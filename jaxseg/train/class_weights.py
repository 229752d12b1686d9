"""Class weights that a config names by their file."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxseg.core.errors import JaxsegError
from jaxseg.core.names import close_matches
from jaxseg.core.types import DatasetInfo

HOW = "`python -m jaxseg.tools.class_weights --output=FILE.json` writes such a file."


def read_class_weights(loss_config: Mapping[str, Any], info: DatasetInfo) -> dict[str, Any]:
    """The loss config with the weights in place of the paths in its `class_weights`; weights themselves stay.

    Args:
      loss_config: name -> weight or options, see `jaxseg.losses.composition.compose`.
      info: the data set whose classes the file has to name.

    Returns:
      A new dictionary.

    Raises:
      JaxsegError: no such file, not what `jaxseg.tools.class_weights` writes, or the weights of other classes.
    """
    result: dict[str, Any] = {}
    for name, entry in loss_config.items():
        path = entry.get("class_weights") if hasattr(entry, "get") else None
        if isinstance(path, str):
            entry = dict(entry) | {"class_weights": _weights(f"config.loss.{name}.class_weights", path, info)}
        result[name] = entry
    return result


def _weights(key: str, path: str, info: DatasetInfo) -> tuple[float, ...]:
    said = f"{key} = {path!r}"
    file = pathlib.Path(path)
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = [str(p) for p in sorted(file.parent.glob("*.json"))] if file.parent.is_dir() else []
        raise JaxsegError(
            f"{said}: there is no such file. {close_matches(path, known) + ' ' if known else ''}{HOW}"
        ) from error
    except OSError as error:
        raise JaxsegError(f"{said} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise JaxsegError(f"{said} is not JSON: {error}. {HOW}") from error
    if not isinstance(record, dict) or not {"classes", "class_weights"} <= set(record):
        raise JaxsegError(f"{said} holds no `classes` and `class_weights`. {HOW}")
    classes, weights = record["classes"], record["class_weights"]
    if classes != list(info.class_names):
        raise JaxsegError(
            f"{said} is for other classes, {classes}; those of {info.name} are {list(info.class_names)}. "
            "Write it anew for this data set."
        )
    numbers = isinstance(weights, list) and len(weights) == len(classes)
    if not numbers or not all(isinstance(w, int | float) and 0 <= w < math.inf for w in weights):
        raise JaxsegError(f"{said}: class_weights is {weights}; it is one finite number of at least 0 a class.")
    return tuple(float(w) for w in weights)
