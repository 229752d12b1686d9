"""Names in a config resolve to module paths: `deeplab_v3plus` is `jaxseg.models.deeplab_v3plus`."""

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any

from jaxseg.core.errors import UnknownNameError


def close_matches(name: str, known: Iterable[str]) -> str:
    """`Did you mean a, b?` or, where nothing is near, the whole list of known names."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {', '.join(near)}?"
    return f"Known: {', '.join(known)}." if known else "There are none."


def known_names(package: str) -> list[str]:
    """Names of the public modules of `jaxseg.<package>`, that is, the values its config key takes."""
    module = importlib.import_module(f"jaxseg.{package}")
    return sorted(m.name for m in pkgutil.iter_modules(module.__path__) if not m.name.startswith("_"))


def resolve(package: str, name: str, attribute: str = "build") -> Any:
    """Returns `jaxseg.<package>.<name>:<attribute>`.

    A name with a dot is a module path as it stands, so that a user's own package can provide the piece.

    Raises:
      UnknownNameError: no such module, or the module lacks the attribute.
    """
    path = name if "." in name else f"jaxseg.{package}.{name}"
    try:
        spec = importlib.util.find_spec(path)
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        where = f"{package} name {name!r} does not exist (looked for the module {path})."
        raise UnknownNameError(f"{where} {close_matches(name, known_names(package))}")
    module = importlib.import_module(path)
    if not hasattr(module, attribute):
        modules = {n: importlib.import_module(f"jaxseg.{package}.{n}") for n in known_names(package)}
        offering = [n for n, m in modules.items() if hasattr(m, attribute)]
        raise UnknownNameError(
            f"{package} name {name!r}: the module {path} has no {attribute!r}. {close_matches(name, offering)}"
        )
    return getattr(module, attribute)


def call_with_options(function: Callable[..., Any], options: dict[str, Any], *, where: str, **fixed: Any) -> Any:
    """Calls `function(**fixed, **options)`; an option that the function does not take is named with its near matches.

    Args:
      function: takes keyword-only options.
      options: what the config says.
      where: the config key that holds the options, for the message.
      **fixed: arguments that the code gives.
    """
    parameters = inspect.signature(function).parameters.values()
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        known = {p.name for p in parameters} - set(fixed)
        for key in options:
            if key not in known:
                what = f"{where}.{key} is not an option of {function.__module__}."
                raise UnknownNameError(f"{what} {close_matches(key, known)}")
    return function(**fixed, **options)
