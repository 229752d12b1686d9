"""A dense block's maps: pieces beside each other, or one array with room around them."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.layers.moments import Moments


class Stack(NamedTuple):
    """Feature maps beside each other, and the moments of each piece as far as norms have made them.

    Attributes:
      pieces: `[*b, h, w, c1]`, `[*b, h, w, c2]`, ..
      moments: of each piece: of its first channels or of all of them, or None.
    """

    pieces: tuple[jax.Array, ...]
    moments: tuple[Moments | None, ...]

    @classmethod
    def of(cls, *pieces: jax.Array) -> "Stack":
        """Pieces that no norm has seen."""
        return cls(pieces, (None,) * len(pieces))

    @property
    def channels(self) -> int:
        """`c1 + c2 + ..`."""
        return sum(piece.shape[-1] for piece in self.pieces)

    def with_moments(self, moments: Moments | None) -> "Stack":
        """The same, of which the moments of the whole are known, or none."""
        cuts = list(itertools.accumulate(piece.shape[-1] for piece in self.pieces))[:-1]
        if moments is None:
            return self
        mean, var = (jnp.split(of, cuts) for of in moments)
        return Stack(self.pieces, tuple(zip(mean, var, strict=True)))

    def followed_by(self, maps: jax.Array) -> "Stack":
        """This one's pieces, then `[*b, h, w, c]` that no norm has seen."""
        return Stack((*self.pieces, maps), (*self.moments, None))

    def preceded_by(self, maps: jax.Array) -> "Stack":
        """`[*b, h, w, c]` that no norm has seen, then this one's pieces."""
        return Stack((maps, *self.pieces), (None, *self.moments))

    def last(self, channels: int) -> jax.Array:
        """`[*b, h, w, channels]`: the last `channels` of the whole; the pieces before them are not read."""
        pieces: list[jax.Array] = []
        for piece in reversed(self.pieces):
            if left := channels - sum(piece.shape[-1] for piece in pieces):
                pieces.insert(0, piece[..., -min(left, piece.shape[-1]) :])
        return _beside(pieces)

    def whole(self) -> jax.Array:
        """`[*b, h, w, c1 + c2 + ..]`."""
        return _beside(self.pieces)


def _beside(pieces: Sequence[jax.Array]) -> jax.Array:
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=-1)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["array"], meta_fields=["first", "end"])
@dataclasses.dataclass(frozen=True)
class Room:
    """What `Stack` is in training, where norms have running statistics: a stack of one piece that nobody copies.

    Maps that a layer adds are written behind those that are there, an enlarged map in front of them, into the array in
    which later layers read them. As pieces they would be put beside each other by each layer that reads them.

    Attributes:
      array: `[*b, h, w, c]`, zeros where nothing is written yet.
      first, end: channels of the array that are the maps, `first .. end - 1`.
    """

    array: jax.Array
    first: int
    end: int

    @classmethod
    def around(cls, x: jax.Array, *, before: int, after: int) -> "Room":
        """Room of so many channels before and after `[*b, h, w, c]`."""
        edges = [(0, 0, 0)] * (x.ndim - 1) + [(before, after, 0)]
        return cls(lax.pad(x, jnp.zeros((), x.dtype), edges), before, before + x.shape[-1])

    @property
    def channels(self) -> int:
        """Of the maps."""
        return self.end - self.first

    @property
    def pieces(self) -> tuple[jax.Array]:
        """`[*b, h, w, end - first]`, the one piece."""
        return (self.whole(),)

    @property
    def moments(self) -> tuple[None]:
        """Of a batch: never known, for the running ones are used."""
        return (None,)

    def with_moments(self, moments: Moments | None) -> "Room":
        """The same."""
        del moments
        return self

    def followed_by(self, maps: jax.Array) -> "Room":
        """`[*b, h, w, c]` written behind these, which takes `c` channels of the room there."""
        return dataclasses.replace(self, array=self._written(maps, self.end), end=self.end + maps.shape[-1])

    def preceded_by(self, maps: jax.Array) -> "Room":
        """`[*b, h, w, c]` written in front of these, which takes `c` channels of the room there."""
        first = self.first - maps.shape[-1]
        return dataclasses.replace(self, array=self._written(maps, first), first=first)

    def last(self, channels: int) -> jax.Array:
        """`[*b, h, w, channels]`: the last of the maps."""
        return self.array[..., self.end - channels : self.end]

    def whole(self) -> jax.Array:
        """`[*b, h, w, end - first]`."""
        return self.array[..., self.first : self.end]

    def _written(self, maps: jax.Array, start: int) -> jax.Array:
        if start < 0 or start + maps.shape[-1] > self.array.shape[-1]:
            raise ValueError(f"no room for {maps.shape[-1]} channels from {start} on of {self.array.shape[-1]}")
        return lax.dynamic_update_slice_in_dim(self.array, maps, start, axis=-1)


Maps = Stack | Room
