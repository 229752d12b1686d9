"""The options that weights were trained with: where the network has others, its outputs are not the original's.

`EXPECTS` of a table maps a path of attributes of the network's module to the value that it must have, for example
`{"padding": "torch", "norm.epsilon": 1e-5}`; with a scope the path begins there. `image_mean` and `image_std` are the
config's settings of the same names.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = object()


def differences(expected: Mapping[str, Any], network: Any, scope: str, settings: Mapping[str, Any]) -> list[str]:
    """A clause for each option that is not as the weights expect.

    Args:
      expected: path -> value.
      network: the module; None leaves its options unchecked.
      scope: part of the network that the paths begin at, "" for all of it.
      settings: values that are not the module's, by the whole path.

    Returns:
      Clauses such as `model.backbone.padding is 'same', the weights expect 'torch'`.
    """
    found = []
    for path, value in expected.items():
        if path in settings:
            name, actual = path, settings[path]
        elif network is None or path in ("image_mean", "image_std"):
            continue
        else:
            name = ".".join(part for part in (scope.replace("/", "."), path) if part)
            actual = _attribute(network, name)
        if not _same(actual, value):
            is_what = "has no such option" if actual is ABSENT else f"is {actual!r}"
            found.append(f"model.{name} {is_what}, the weights expect {value!r}")
    return found


def _attribute(network: Any, path: str) -> Any:
    for name in path.split("."):
        network = getattr(network, name, ABSENT)
    return network


def _same(actual: Any, value: Any) -> bool:
    if isinstance(value, float):
        return isinstance(actual, int | float) and math.isclose(actual, value, rel_tol=1e-6)
    if isinstance(value, Sequence) and not isinstance(value, str):
        same_kind = isinstance(actual, Sequence) and not isinstance(actual, str) and len(actual) == len(value)
        return same_kind and all(_same(a, b) for a, b in zip(actual, value, strict=True))
    return bool(actual == value)
