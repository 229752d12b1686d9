"""A dense block: layers that each see the input and all that the layers before them made (arXiv 1608.06993, eq. 2)."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.layers.moments import Moments, batch_moments, followed_by, moments_gradient
from jaxseg.layers.norm import StackNorm, rectified, rectified_gradient
from jaxseg.layers.stack import Maps, Room, Stack
from jaxseg.ops.apart import apart

STATISTICS = ("batch_stats", "batch_moments")
Variables = Mapping[str, Any]


class DenseLayer(nn.Module):
    """A layer of a dense block: batch norm and ReLU of all maps, and what makes new maps of them.

    A class of layers has the attributes `norm` (its options) and `dtype`, makes its convolutions in `setup`, after this
    one's, and the new maps in `grow`. NORM is the norm's name among its parameters.
    """

    NORM = "norm"

    def setup(self) -> None:
        self.rectifying = StackNorm(self.norm, self.dtype, name=self.NORM)

    def grow(self, x: jax.Array, train: bool) -> jax.Array:
        """Rectified maps `[*b, h, w, c]` -> the new ones."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it makes new maps: it needs a method grow.")

    def __call__(self, stack: Maps, train: bool) -> tuple[jax.Array, Maps]:
        """A stack of `[*b, h, w, c]` -> the new maps, and the stack with its moments."""
        x, stack = self.rectifying(stack, train)
        return self.grow(x, train), stack


class DenseBlock(nn.Module):
    """Layers that each see the input and all that the layers before them made.

    In training all maps lie in one array, into which each layer writes its own; and there is one array of their
    gradients, to which each layer, from the last to the first, adds. As JAX derives it each layer would put all maps
    beside each other anew and keep that, or read them piece by piece, and a map's gradient would be a sum of as many
    terms as layers read it. The two arrays are those of a memory-efficient DenseNet (arXiv 1707.06990, section 4).

    Attributes:
      layer: `layer(name=...)` makes a `DenseLayer`.
      layers: how many.
      growth: maps that each makes.
      remat: what a layer's convolutions read is made again in the backward pass, a layer at a time.
    """

    layer: Callable[..., DenseLayer]
    layers: int
    growth: int
    remat: bool = False

    def setup(self) -> None:
        self.members = [self.layer(name=f"layer{i + 1}") for i in range(self.layers)]

    def __call__(self, stack: Maps, train: bool) -> Maps:
        """A stack of `[*b, h, w, c]` -> one of `[*b, h, w, c + layers * growth]`, the new maps at its end."""
        if isinstance(stack, Room) or self.is_initializing():

            def layer(member: DenseLayer, stack: Maps) -> tuple[jax.Array, Maps]:
                return member(stack, train)

            again = nn.remat(layer) if self.remat and not self.is_initializing() else layer
            for member in self.members:
                made, stack = again(member, stack)
                stack = stack.followed_by(made)
            return stack
        found = [member.variables for member in self.members]
        growing = _Growing(
            self.layer(parent=None),
            self.growth,
            train,
            self.remat,
            tuple(name for name in STATISTICS if self.is_mutable_collection(name)),
            tuple(piece.shape[-1] for piece in stack.pieces),
        )
        array, moments, updates = growing.function()(
            [variables["params"] for variables in found],
            [{name: tree for name, tree in variables.items() if name != "params"} for variables in found],
            [{"dropout": member.make_rng("dropout")} if self.has_rng("dropout") else {} for member in self.members],
            stack.pieces,
            self.members[0].rectifying.moments(stack, train),
        )
        for member, update in zip(self.members, updates, strict=True):
            for collection, changed in update.items():
                for name, value in changed.items():
                    member.put_variable(collection, name, value)
        return Stack((array,), (moments,))


class _Step(NamedTuple):
    """What the gradient of a layer needs of its values."""

    factor: jax.Array
    shift: jax.Array
    of_line: Callable[..., Any]
    of_growth: Any  # the gradient; with `remat` what it is made of


@dataclasses.dataclass(frozen=True)
class _Growing:
    """A block in training as a function with a gradient of its own; what of it is known when it is traced.

    Attributes:
      layer: unbound, any of the block's.
      growth, train, remat: as of the block.
      mutable: collections of which updates are given.
      widths: channels of the input's pieces.
    """

    layer: DenseLayer
    growth: int
    train: bool
    remat: bool
    mutable: tuple[str, ...]
    widths: tuple[int, ...]

    def function(self) -> Callable[..., Any]:
        """`(params, fixed, keys, pieces, moments) -> array, moments, updates`.

        Of each layer its parameters, its other collections and its random keys; the input's pieces and the moments of
        all their channels, or None. Then all maps, the moments of those that a norm has seen, and of each layer its
        updated collections.
        """

        @jax.custom_vjp
        def grown(*arguments: Any) -> Any:
            return self._forward(*arguments)[0]

        grown.defvjp(self._forward, self._backward)
        return grown

    def _forward(
        self,
        params: Sequence[Variables],
        fixed: Sequence[Variables],
        keys: Sequence[Variables],
        pieces: Sequence[jax.Array],
        moments: Moments | None,
    ) -> tuple[Any, Any]:
        after = sum(self.widths[1:]) + len(params) * self.growth
        room = functools.reduce(Room.followed_by, pieces[1:], Room.around(pieces[0], before=0, after=after))
        count = room.array.size // room.array.shape[-1]
        steps, updates, name = [], [], self.layer.NORM
        for i, (own, others, key) in enumerate(zip(params, fixed, keys, strict=True)):
            statistics, rest = {of: tree[name] for of, tree in others.items()}, _without(name, others)
            line = functools.partial(self._line, statistics, count)
            (factor, shift), of_line, changed = jax.vjp(line, own[name], moments, has_aux=True)
            x = apart(rectified(room.whole(), factor, shift, self.layer.dtype), shift[0])
            inner = _without(name, {"params": own})["params"]
            made, of_growth, more = jax.vjp(functools.partial(self._grow, rest, key), inner, x, has_aux=True)
            # Its readers are its moments and the one thread that writes it into the room: made before by both.
            made = apart(made, shift[0])
            room = room.followed_by(made)
            if moments is not None and i + 1 < len(params):
                running = fixed[i + 1]["batch_stats"][name]["mean"]
                moments = followed_by(moments, batch_moments(made, shift=running[-self.growth :]))
            steps.append(_Step(factor, shift, of_line, (rest, key, inner) if self.remat else of_growth))
            updates.append({of: {name: changed.get(of, {}), **more.get(of, {})} for of in self.mutable})
        array = apart(room.array, shift[0])  # or each of its readers has the last layer's maps written again
        return (array, moments, updates), (array, moments, steps)

    def _backward(self, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
        (array, moments, steps), (g, g_moments, _) = residuals, cotangents
        of_params = []
        for step in reversed(steps):
            c = len(step.factor)
            g_made = g[..., c:]
            if moments is not None and c < len(g_moments[0]):
                mean, of_made = moments[0][c : c + self.growth], (g_moments[0][c:], g_moments[1][c:])
                g_made += moments_gradient(array[..., c : c + self.growth], mean, of_made).astype(g.dtype)
                g_moments = g_moments[0][:c], g_moments[1][:c]
            of_growth = step.of_growth
            if self.remat:
                rest, key, inner = step.of_growth
                # When its gradient is there, and not before; nor may it be found to be what there was.
                array, g_made = lax.optimization_barrier((array, g_made))
                now = apart(step.shift, g_made[(0,) * g_made.ndim])
                x = rectified(array[..., :c], step.factor, now, self.layer.dtype)
                _, of_growth, _ = jax.vjp(functools.partial(self._grow, rest, key), inner, x, has_aux=True)
            of_inner, g_x = of_growth(g_made)
            gradient, *of_line = rectified_gradient(array[..., :c], step.factor, step.shift, g_x, self.layer.dtype)
            of_norm, of_moments = step.of_line(tuple(of_line))
            if moments is not None:
                g_moments = g_moments[0] + of_moments[0], g_moments[1] + of_moments[1]
            g = apart(g[..., :c] + gradient, step.shift[0])
            of_params.append({self.layer.NORM: of_norm, **of_inner})
        of_pieces = jnp.split(g, list(itertools.accumulate(self.widths))[:-1], axis=-1)
        return of_params[::-1], None, None, tuple(of_pieces), g_moments

    def _line(
        self, statistics: Variables, count: int, of_norm: Variables, moments: Moments | None
    ) -> tuple[tuple[jax.Array, jax.Array], Variables]:
        """Factor and shift of a layer's norm; what it updates."""
        norm, channels = StackNorm(self.layer.norm, self.layer.dtype, parent=None), len(of_norm["scale"])
        of = {"params": of_norm, **statistics}
        return norm.apply(of, moments, channels, count, self.train, method="line", mutable=self.mutable)

    def _grow(self, rest: Variables, key: Variables, inner: Variables, x: jax.Array) -> tuple[jax.Array, Variables]:
        """A layer's new maps; what is updated on the way."""
        of = {"params": inner, **rest}
        return self.layer.apply(of, x, self.train, method="grow", rngs=dict(key), mutable=self.mutable)


def _without(name: str, collections: Variables) -> dict[str, dict[str, Any]]:
    """The collections less what is called so."""
    return {of: {key: value for key, value in tree.items() if key != name} for of, tree in collections.items()}
