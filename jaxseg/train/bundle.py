"""Small parameters laid end to end, so that the optimiser works on a few vectors instead of hundreds of them.

A network has some hundred biases, scales and depthwise kernels, and an optimiser some operations for each. The residual
FCN's 447 of 580 parameters took a fifth of its train step's instructions, which costs most when a program is read from
the compilation cache (docs/starts.md). PyTorch's `foreach` optimisers work on many tensors at once too.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxseg.ops.apart import apart

SMALL = 8192  # numbers; laying them end to end copies them


def small_on(mesh: Mesh) -> int:
    """`SMALL` on CPUs; 0 on accelerators, where nothing was measured, and where parameters are split over devices."""
    return SMALL if mesh.devices.flat[0].platform == "cpu" and mesh.shape["fsdp"] == 1 else 0


class Bundled(NamedTuple):
    """A tree like the parameters, in the arrays of a `Bundle`."""

    arrays: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Bundle:
    """Which parameters lie end to end.

    Attributes:
      structure: of the parameter tree.
      shapes: of its leaves.
      groups: positions of the leaves in each array; a leaf that is alone keeps its shape.
    """

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, params: Any, kinds: Any, *, small: int) -> "Bundle":
        """Leaves of at most `small` numbers that have the same kind and dtype, together.

        Args:
          params: arrays or shapes.
          kinds: a tree like `params` of hashable objects.
          small: 0 leaves each parameter alone.
        """
        leaves: list[Any] = jax.tree.leaves(params)
        structure: Any = jax.tree.structure(params)
        together: dict[Hashable, list[int]] = {}
        for i, (leaf, kind) in enumerate(zip(leaves, structure.flatten_up_to(kinds), strict=True)):
            together.setdefault((kind, leaf.dtype) if leaf.size <= small else i, []).append(i)
        return cls(structure, tuple(tuple(leaf.shape) for leaf in leaves), tuple(map(tuple, together.values())))

    def is_like(self, tree: Any) -> bool:
        """Whether a tree has the parameters' structure."""
        return bool(jax.tree.structure(tree) == self.structure)

    def each(self, function: Callable[[Any], Any], kinds: Any) -> Bundled:
        """`function` of each array's kind."""
        leaves = self.structure.flatten_up_to(kinds)
        return Bundled(tuple(function(leaves[group[0]]) for group in self.groups))

    def join(self, tree: Any, witness: jax.Array) -> Bundled:
        """A tree like the parameters as arrays; `witness` as in `ops.apart`."""
        leaves = self.structure.flatten_up_to(tree)

        def joined(group: tuple[int, ...]) -> jax.Array:
            if len(group) == 1:
                return leaves[group[0]]
            # Written before and after the update: XLA's CPU would fuse it into each of the parts, with all of them.
            return apart(jnp.concatenate([leaves[i].ravel() for i in group]), witness)

        return Bundled(tuple(map(joined, self.groups)))

    def split(self, bundled: Bundled, witness: jax.Array) -> Any:
        """The inverse of `join`."""
        leaves: dict[int, jax.Array] = {}
        for group, array in zip(self.groups, bundled.arrays, strict=True):
            if len(group) == 1:
                leaves[group[0]] = array
                continue
            cuts = list(itertools.accumulate(math.prod(self.shapes[i]) for i in group[:-1]))
            for i, part in zip(group, jnp.split(apart(array, witness), cuts), strict=True):
                leaves[i] = part.reshape(self.shapes[i])
        return self.structure.unflatten([leaves[i] for i in range(len(leaves))])
