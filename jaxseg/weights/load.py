"""Loads a checkpoint of another project into a network's variables through a name table."""

import dataclasses
import logging
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.core.errors import JaxsegError
from jaxseg.core.names import resolve
from jaxseg.weights.catalog import locate
from jaxseg.weights.expectations import differences
from jaxseg.weights.readers import read_arrays

LOGGER = logging.getLogger(__name__)
COUNTERS = (".num_batches_tracked",)
"""What PyTorch's modules count for themselves; no network has use for it."""


def load_weights(
    path: str | pathlib.Path,
    variables: Any,
    *,
    table: str = "",
    scope: str = "",
    skip: str = "",
    network: Any = None,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """Replaces variables by the arrays of a file.

    Variables have flat names, `params/backbone/conv/conv/kernel`. A table is a module of jaxseg.weights.tables with
    `TABLE`, flat name -> Source or a function that gives that for the names of a network; `IGNORED`, prefix of file
    names -> why they are left out where nothing uses them; and `EXPECTS`, the options that the weights were trained
    with (see jaxseg.weights.expectations), whose violation is a logged warning, and part of the error if there is one.

    Args:
      path: a PyTorch, .safetensors or .npz file, or a name of jaxseg.weights.catalog, for example
        "torchvision/resnet50.IMAGENET1K_V2".
      variables: {"params": ..., "batch_stats": ...} as `module.init` returns them, arrays or ShapeDtypeStructs.
      table: the table's name; "" for the one that belongs to a name of the catalog.
      scope: part of the network, for example "backbone": only variables below `<collection>/<scope>/` are loaded, and
        the table's names begin after it. "" for the whole network.
      skip: regular expression; variables in whose name it is found keep their values, for example "classifier" where
        the classes are others than the file's. "" for none.
      network: the module that the variables belong to, for `EXPECTS`.
      settings: further options that `EXPECTS` may speak about, for example {"image_mean": ...}.

    Returns:
      A tree like `variables` with the loaded arrays in place; the others are the ones that came in.

    Raises:
      JaxsegError: unreadable file, unknown table or scope; variables that the table or the file lacks, arrays of the
        file that nothing uses, shapes that differ, values that are not finite. All of them are counted and listed.
    """
    file, table = locate(path, table)
    flat, treedef = jax.tree_util.tree_flatten_with_path(variables)
    named = ((_relative(_flat_name(key), scope), i) for i, (key, _) in enumerate(flat))
    wanted = {name: i for name, i in named if name is not None}
    if not wanted:
        raise JaxsegError(f"config.weights.scope = {scope!r}: the network has no variables below that name.")
    skipped = {name for name in wanted if skip and _pattern(skip).search(name)}
    sources = _sources(table, list(wanted))
    arrays = read_arrays(file)
    expected = resolve("weights.tables", table, "EXPECTS")
    problems = _Problems(str(file), table, len(wanted), differences(expected, network, scope, settings or {}))
    leaves, used = [leaf for _, leaf in flat], set()
    for name, position in wanted.items():
        source = sources.get(name)
        if source is not None:
            used.add(source.name)
        if name in skipped:
            continue
        if source is None or source.name not in arrays:
            problems.missing.append(name if source is None else f"{name} (from {source.name})")
            continue
        value = arrays[source.name] if source.hook is None else source.hook(arrays[source.name])
        problems.check(name, source.name, value, leaves[position])
        leaves[position] = value
    ignored = tuple(resolve("weights.tables", table, "IGNORED"))
    left = [n for n in arrays if n not in used and not n.endswith(COUNTERS)]
    problems.unused = [n for n in left if not (ignored and n.startswith(ignored)) and not (skip and re.search(skip, n))]
    problems.raise_or_warn()
    old = [leaf for _, leaf in flat]
    leaves = [b if a is b else jnp.asarray(b, a.dtype) for a, b in zip(old, leaves, strict=True)]
    return jax.tree_util.tree_unflatten(treedef, leaves)


def _sources(table: str, names: Sequence[str]) -> Mapping[str, Any]:
    """The table's sources for the names of a network."""
    found = resolve("weights.tables", table, "TABLE")
    return found(names) if callable(found) else found


def _pattern(skip: str) -> re.Pattern[str]:
    try:
        return re.compile(skip)
    except re.error as error:
        raise JaxsegError(f"config.weights.skip = {skip!r} is no regular expression: {error}.") from None


def _flat_name(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(key, "key", key)) for key in path)


def _relative(name: str, scope: str) -> str | None:
    """`params/backbone/x` in scope `backbone` is `params/x`; None outside the scope."""
    if not scope:
        return name
    collection, _, rest = name.partition("/")
    prefix = scope.strip("/") + "/"
    return f"{collection}/{rest.removeprefix(prefix)}" if rest.startswith(prefix) else None


@dataclasses.dataclass
class _Problems:
    """Everything that does not fit, told in one message."""

    path: str
    table: str
    wanted: int
    options: list[str]
    missing: list[str] = dataclasses.field(default_factory=list)
    unused: list[str] = dataclasses.field(default_factory=list)
    shapes: list[str] = dataclasses.field(default_factory=list)
    values: list[str] = dataclasses.field(default_factory=list)

    def check(self, name: str, source: str, value: np.ndarray, variable: Any) -> None:
        if value.shape != variable.shape:
            self.shapes.append(f"{name} is {variable.shape}, {source} gives {value.shape}")
        elif not np.issubdtype(value.dtype, np.floating) or not np.isfinite(value).all():
            self.values.append(f"{source} ({value.dtype})")

    def raise_or_warn(self) -> None:
        kinds: Mapping[str, list[str]] = {
            "variables that the file does not give": self.missing,
            "arrays of the file that nothing uses": self.unused,
            "shapes that differ": self.shapes,
            "arrays that are not finite floating-point numbers": self.values,
        }
        lines = [f"  {len(found)} {kind}: {_first_ten(found)}" for kind, found in kinds.items() if found]
        if lines:
            if len(self.missing) * 2 > self.wanted or len(self.shapes) * 2 > self.wanted:
                lines.insert(0, f"  It looks like another architecture's: {self._fitting()} of {self.wanted} fit.")
            lines += [f"  {option}" for option in self.options]
            advice = "Choose the table, the scope and the network's options (width, classes) that belong to the file."
            raise JaxsegError("\n".join([f"{self.path} does not fit (table {self.table}):", *lines, advice]))
        for option in self.options:
            LOGGER.warning("%s: %s.", self.path, option)

    def _fitting(self) -> int:
        return self.wanted - len(self.missing) - len(self.shapes) - len(self.values)


def _first_ten(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f", ... ({len(names) - 10} more)" if len(names) > 10 else "")
