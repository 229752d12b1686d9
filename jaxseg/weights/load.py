"""Loads a checkpoint of another project into a network's variables through a name table."""

import dataclasses
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.core.errors import JaxsegError
from jaxseg.core.names import resolve

Hook = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a variable comes from.

    Attributes:
      name: the array's name in the file.
      hook: turns the file's array into the variable's layout; None leaves it as it is.
    """

    name: str
    hook: Hook | None = None


def load_weights(path: str | pathlib.Path, variables: Any, *, table: str, scope: str = "") -> Any:
    """Replaces variables by the arrays of a file.

    Variables have flat names, `params/backbone/conv/conv/kernel`. A table is a module of jaxseg.weights.tables with
    `TABLE`, flat name -> Source, and `IGNORED`, prefix of file names -> why they are left out.

    Args:
      path: an .npz file.
      variables: {"params": ..., "batch_stats": ...} as `module.init` returns them, arrays or ShapeDtypeStructs.
      table: the table's name.
      scope: part of the network, for example "backbone": only variables below `<collection>/<scope>/` are loaded, and
        the table's names begin after it. "" for the whole network.

    Returns:
      A tree like `variables` with the loaded arrays in place; the others are the ones that came in.

    Raises:
      JaxsegError: unreadable file, unknown table or scope; variables that the table or the file lacks, arrays of the
        file that nothing uses, shapes that differ, values that are not finite. All of them are counted and listed.
    """
    arrays = read_npz(path)
    names = resolve("weights.tables", table, "TABLE")
    ignored = resolve("weights.tables", table, "IGNORED")
    flat, treedef = jax.tree_util.tree_flatten_with_path(variables)
    named = ((_relative(_flat_name(key), scope), i) for i, (key, _) in enumerate(flat))
    wanted = {name: i for name, i in named if name is not None}
    if not wanted:
        raise JaxsegError(f"config.weights.scope = {scope!r}: the network has no variables below that name.")
    leaves = [leaf for _, leaf in flat]
    problems, used = _Problems(path=str(path), table=table), set()
    for name, position in wanted.items():
        source = names.get(name)
        if source is None or source.name not in arrays:
            problems.missing.append(name if source is None else f"{name} (from {source.name})")
            continue
        used.add(source.name)
        value = arrays[source.name] if source.hook is None else source.hook(arrays[source.name])
        problems.check(name, source.name, value, leaves[position])
        leaves[position] = value
    problems.unused = [n for n in arrays if n not in used and not n.startswith(tuple(ignored) or ("\0",))]
    problems.raise_if_any()
    old = [leaf for _, leaf in flat]
    leaves = [b if a is b else jnp.asarray(b, a.dtype) for a, b in zip(old, leaves, strict=True)]
    return jax.tree_util.tree_unflatten(treedef, leaves)


def read_npz(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; pickled objects in it are refused.

    Raises:
      JaxsegError: no such file, not an .npz file, truncated, or with pickled objects.
    """
    try:
        # Opened here: where the archive is broken, np.load leaves the file that it opened itself open.
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise JaxsegError(f"{path} is not an .npz file of named arrays.")
            with archive:
                return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise JaxsegError(f"{path}: no such file (config.weights.path).") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise JaxsegError(f"{path} cannot be read as an .npz file of plain arrays: {error}") from error


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
    missing: list[str] = dataclasses.field(default_factory=list)
    unused: list[str] = dataclasses.field(default_factory=list)
    shapes: list[str] = dataclasses.field(default_factory=list)
    values: list[str] = dataclasses.field(default_factory=list)

    def check(self, name: str, source: str, value: np.ndarray, variable: Any) -> None:
        if value.shape != variable.shape:
            self.shapes.append(f"{name} is {variable.shape}, {source} gives {value.shape}")
        elif not np.issubdtype(value.dtype, np.floating) or not np.isfinite(value).all():
            self.values.append(f"{source} ({value.dtype})")

    def raise_if_any(self) -> None:
        kinds: Mapping[str, list[str]] = {
            "variables that the file does not give": self.missing,
            "arrays of the file that nothing uses": self.unused,
            "shapes that differ": self.shapes,
            "arrays that are not finite floating-point numbers": self.values,
        }
        lines = [f"  {len(found)} {kind}: {_first_ten(found)}" for kind, found in kinds.items() if found]
        if lines:
            advice = "Choose the table, the scope and the network's options (width, classes) that belong to the file."
            raise JaxsegError("\n".join([f"{self.path} does not fit (table {self.table}):", *lines, advice]))


def _first_ten(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f", ... ({len(names) - 10} more)" if len(names) > 10 else "")
