"""A dense block's maps: pieces beside each other in training, one array with room around them at test."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.ops.apart import gradient_apart

Moments = tuple[jax.Array, jax.Array]  # mean, variance of each channel

# Pixels of all images up to which `Stack.joined_where_small` joins. FC-DenseNet103, train step of 3x224x224 on two
# cores, in turns: 9.1 s without, 9.1 with 4096 (maps of 28x28 and smaller), 9.3 with 10000 (56x56 too); the program has
# 8,500, 6,700 and 6,400 fusions, and is read from the compilation cache in 40 to 48 s without, 20 to 24 s with 4096.
SMALL_PIXELS = 4096


class Stack(NamedTuple):
    """Feature maps beside each other in a dense block, and the moments of each once a norm has made them.

    Attributes:
      pieces: `[*b, h, w, c1]`, `[*b, h, w, c2]`, ..
      moments: of each piece, or None.
      beside: the pieces, `[*b, h, w, c1 + c2 + ..]`, without a gradient; what NVIDIA GPUs read. None where they are
        not 16-bit numbers.
    """

    pieces: tuple[jax.Array, ...]
    moments: tuple[Moments | None, ...]
    beside: jax.Array | None

    @classmethod
    def of(cls, *pieces: jax.Array) -> "Stack":
        """Pieces that no norm has seen."""
        narrow = all(piece.dtype.itemsize == 2 for piece in pieces)
        beside = functools.reduce(_beside, map(lax.stop_gradient, pieces)) if narrow else None
        return cls(pieces, (None,) * len(pieces), beside)

    def with_moments(self, moments: tuple[Moments | None, ...]) -> "Stack":
        """The same, of moments that are known now."""
        return self._replace(moments=moments)

    def followed_by(self, maps: jax.Array) -> "Stack":
        """This one's pieces, then `[*b, h, w, c]` that no norm has seen."""
        return self._before(Stack.of(maps))

    def preceded_by(self, maps: jax.Array) -> "Stack":
        """`[*b, h, w, c]` that no norm has seen, then this one's pieces."""
        return Stack.of(maps)._before(self)

    def _before(self, other: "Stack") -> "Stack":
        beside = None if self.beside is None or other.beside is None else _beside(self.beside, other.beside)
        return Stack(self.pieces + other.pieces, self.moments + other.moments, beside)

    def joined_where_small(self, witness: jax.Array) -> "Stack":
        """The same as one piece where the maps are small: another layer then adds a norm's work once, not once a piece.

        Args:
          witness: of `gradient_apart`; without that border XLA's CPU makes each gradient of all later layers' anew.

        Returns:
          A stack of one piece where all images together have at most `SMALL_PIXELS` pixels; else this one.
        """
        first = self.pieces[0]
        if len(self.pieces) == 1 or first.size > SMALL_PIXELS * first.shape[-1]:
            return self
        known = [moments for moments in self.moments if moments is not None]
        joined: Moments | None = None
        if len(known) == len(self.pieces):
            joined = jnp.concatenate([mean for mean, _ in known]), jnp.concatenate([var for _, var in known])
        return Stack((gradient_apart(self.whole(), witness),), (joined,), self.beside)

    def last(self, channels: int) -> jax.Array:
        """`[*b, h, w, channels]`: the last `channels` of the whole; the pieces before them are not read."""
        pieces: list[jax.Array] = []
        for piece in reversed(self.pieces):
            if left := channels - sum(piece.shape[-1] for piece in pieces):
                pieces.insert(0, piece[..., -min(left, piece.shape[-1]) :])
        return jnp.concatenate(pieces, axis=-1)

    def whole(self) -> jax.Array:
        """`[*b, h, w, c1 + c2 + ..]`."""
        return jnp.concatenate(self.pieces, axis=-1)


def _beside(left: jax.Array, right: jax.Array) -> jax.Array:
    """Two beside each other: on NVIDIA GPUs written at once, or XLA would read all of a stack's pieces one by one."""

    def written(left: jax.Array, right: jax.Array) -> jax.Array:
        return lax.optimization_barrier(joined(left, right))

    def joined(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.concatenate([left, right], axis=-1)

    return lax.platform_dependent(left, right, cuda=written, default=joined)


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
    def pieces(self) -> tuple[jax.Array]:
        """`[*b, h, w, end - first]`, the one piece."""
        return (self.whole(),)

    @property
    def moments(self) -> tuple[None]:
        """Of a batch: never known, for the running ones are used."""
        return (None,)

    @property
    def beside(self) -> None:
        """As `Stack.beside`: one piece lies beside no other."""
        return None

    def with_moments(self, moments: tuple[Moments | None, ...]) -> "Room":
        """The same."""
        del moments
        return self

    def joined_where_small(self, witness: jax.Array) -> "Room":
        """The same: it is of one piece."""
        del witness
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
