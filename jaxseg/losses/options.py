"""Checks of the options that a config gives to a loss, with the key in the message."""

import math
from collections.abc import Iterable
from typing import Any

from jaxseg.core.errors import JaxsegError


def number(key: str, value: Any, *, least: float = 0.0, most: float = math.inf) -> float:
    """The value as a float.

    Args:
      key: how the message calls it, for example `focal.gamma`.
      value: what the config says.
      least: smallest value that is taken.
      most: largest value that is taken.

    Raises:
      JaxsegError: it is no finite number in `[least, most]`.
    """
    fits = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    if not fits or not least <= value <= most:
        bounds = f"of at least {least:g}" if most == math.inf else f"in [{least:g}, {most:g}]"
        raise JaxsegError(f"config.loss.{key} = {value!r}; it takes a finite number {bounds}.")
    return float(value)


def whole_number(key: str, value: Any, *, least: int = 0) -> int:
    """The value as an int.

    Raises:
      JaxsegError: it is no whole number of at least `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise JaxsegError(f"config.loss.{key} = {value!r}; it takes a whole number of at least {least}.")
    return value


def weights(key: str, values: Any) -> tuple[float, ...] | None:
    """The weights as floats, None where there are none.

    Raises:
      JaxsegError: one is negative, not finite or no number.
    """
    if values is None:
        return None
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise JaxsegError(f"config.loss.{key} = {values!r}; it takes one number a class.")
    try:
        found = tuple(float(w) for w in values)
    except (TypeError, ValueError) as error:
        raise JaxsegError(f"config.loss.{key} = {values!r}; it takes one number a class ({error}).") from error
    if not all(0 <= w < math.inf for w in found):
        raise JaxsegError(f"config.loss.{key} = {found}: weights are finite and not negative.")
    return found


def choice(key: str, value: Any, known: Iterable[Any]) -> Any:
    """The value.

    Raises:
      JaxsegError: it is none of those known.
    """
    known = tuple(known)
    if value not in known:
        raise JaxsegError(f"config.loss.{key} = {value!r} is not one of {', '.join(map(str, known))}.")
    return value
