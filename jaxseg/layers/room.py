"""A dense block's maps at test: in their place of one array, with room around them for those that join them later."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.layers.norm import Moments, Stack


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
