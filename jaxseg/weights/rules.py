"""Name tables by rule: a network's depth and width vary, the way in which its parts are named does not."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Hook = Callable[[np.ndarray], np.ndarray]
Target = str | Callable[[re.Match[str]], str]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a variable comes from.

    Attributes:
      name: the array's name in the file.
      hook: turns the file's array into the variable's layout; None leaves it as it is.
    """

    name: str
    hook: Hook | None = None


Table = Mapping[str, Source] | Callable[[Sequence[str]], Mapping[str, Source]]
"""Flat name -> Source; or a function that gives it for the names that a network has."""


def convolution(array: np.ndarray) -> np.ndarray:
    """OIHW -> HWIO; right for grouped and depthwise convolutions too. A linear layer `[out, in]` becomes 1x1."""
    if array.ndim == 2:
        return array.T[None, None]
    return array.transpose(2, 3, 1, 0)


def transposed_convolution(array: np.ndarray) -> np.ndarray:
    """IOHW -> HWIO, of a transposed convolution whose kernel is not flipped: PyTorch's."""
    return array.transpose(2, 3, 0, 1)


def linear_on_pixels(size: int) -> Hook:
    """A linear layer on flattened `[c, size, size]` features as a convolution `[size, size, c, out]` (VGG's fc6)."""

    def hook(array: np.ndarray) -> np.ndarray:
        return array.reshape(len(array), -1, size, size).transpose(2, 3, 1, 0)

    return hook


def swap_first_and_last_input(hook: Hook = convolution) -> Hook:
    """The same kernel for an image whose channels come in the other order, BGR for RGB."""
    return lambda array: hook(array)[:, :, ::-1]


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the modules of one kind are called on the other side.

    Attributes:
      ours: regular expression that matches a module's whole path, `stage(\\d)_unit(\\d+)/conv1/conv`.
      theirs: what stands for it in the file, `layer\\1.conv1`, or a function of the match.
      kernel: turns the layout of the module's kernel.
    """

    ours: str
    theirs: Target
    kernel: Hook = convolution

    def apply(self, module: str) -> str | None:
        """The file's name of a module; None where the rule is not about it."""
        match = re.fullmatch(self.ours, module)
        if match is None:
            return None
        return self.theirs(match) if callable(self.theirs) else match.expand(self.theirs)


# The leaves of a module in PyTorch's names; kernels are turned by the rule's hook, the rest are vectors.
LEAVES = {"bias": "bias", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def by_rules(rules: Sequence[Rule]) -> Callable[[Iterable[str]], dict[str, Source]]:
    """A table in PyTorch's naming: the first rule that matches a variable's module names it.

    Variables `params/<module>/kernel` come from `<theirs>.weight`, `bias` from `.bias`, a batch norm's `scale`, `mean`
    and `var` from `.weight`, `.running_mean` and `.running_var`.
    """

    def table(names: Iterable[str]) -> dict[str, Source]:
        found: dict[str, Source] = {}
        for name in names:
            path, _, leaf = name.partition("/")[2].rpartition("/")
            for rule in rules:
                theirs = rule.apply(path)
                if theirs is not None and leaf == "kernel":
                    found[name] = Source(f"{theirs}.weight", rule.kernel)
                elif theirs is not None and leaf in LEAVES:
                    found[name] = Source(f"{theirs}.{LEAVES[leaf]}")
                if name in found:
                    break
        return found

    return table


def conv_norm(ours: str, conv: Target, norm: Target, kernel: Hook = convolution) -> list[Rule]:
    """The rules of a ConvNorm block: `<ours>/conv` and `<ours>/norm`."""
    return [Rule(f"{ours}/conv", conv, kernel), Rule(f"{ours}/norm", norm)]


def below(ours: str, theirs: str, rules: Iterable[Rule]) -> list[Rule]:
    """The rules of a part that lies below `ours` in our network and below `theirs` in the file."""

    def prefixed(rule: Rule) -> Target:
        inner = rule.theirs
        if callable(inner):
            return lambda match: theirs + inner(match)
        return theirs.replace("\\", r"\\") + inner

    return [Rule(re.escape(ours) + rule.ours, prefixed(rule), rule.kernel) for rule in rules]


def minus(group: int, amount: int, template: str) -> Callable[[re.Match[str]], str]:
    """A target whose group counts from another number: `minus(2, 1, "layer{1}.{2}")` for `stage1_unit1`.

    `{n}` in the template stands for group n; the given one is lowered by `amount` (raised where it is negative).
    """

    def target(match: re.Match[str]) -> str:
        groups: list[Any] = ["", *match.groups()]
        groups[group] = int(groups[group]) - amount
        return template.format(*groups)

    return target
