"""The loss of a config: a weighted sum of terms, each divided by its own count over the whole batch."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxseg.core.coarse import CoarseLogits
from jaxseg.core.errors import JaxsegError
from jaxseg.core.names import call_with_options, close_matches, resolve
from jaxseg.losses.reduction import ByRows, Loss, divide
from jaxseg.ops.row_blocks import RowBlocks, map_rows, sum_over_rows

SCHEDULE_KEYS = ("start", "end", "duration_steps", "every_steps")
Weight = Callable[[ArrayLike], jax.Array]


@dataclasses.dataclass(frozen=True)
class Composition:
    """`sum over terms of weight(step) * sum(values) / sum(counts)`.

    Attributes:
      terms: name -> (weight of a step, loss).
    """

    terms: Mapping[str, tuple[Weight, Loss]]

    @property
    def whole_batch(self) -> bool:
        """Whether the logits of the whole batch must be there before the loss of any of its images."""
        return any(loss.whole_batch for _, loss in self.terms.values())

    def divisors(self, labels: ArrayLike, *, where: ArrayLike | None, num_classes: int) -> dict[str, jax.Array]:
        """What each term's sum is divided by, float32 scalars; of the whole batch, before it is split."""
        return {
            name: loss.divisor(labels, where=where, num_classes=num_classes) for name, (_, loss) in self.terms.items()
        }

    def __call__(
        self,
        logits: ArrayLike,
        labels: ArrayLike,
        *,
        where: ArrayLike | None = None,
        divisors: Mapping[str, jax.Array] | None = None,
        step: ArrayLike = 0,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss and its terms before weighting, float32 scalars.

        Args:
          logits: float `[*b, h, w, c]`.
          labels: integers `[*b, h, w]`.
          where: bool `[*b, h, w]`; None: every pixel.
          divisors: from `divisors` for the batch that this is a part of; the parts' results then add up to the
            batch's. None: this is the whole batch.
          step: the step that weights with a schedule go by.
        """
        if divisors is None:
            divisors = self.divisors(labels, where=where, num_classes=jnp.asarray(logits).shape[-1])
        found = {
            name: divide(jnp.sum(loss(logits, labels, where=where)), divisors[name])
            for name, (_, loss) in self.terms.items()
        }
        return self._weighted(found, step)

    def by_rows(
        self,
        coarse: CoarseLogits,
        labels: ArrayLike,
        *,
        rows: int,
        where: ArrayLike | None = None,
        divisors: Mapping[str, jax.Array] | None = None,
        step: ArrayLike = 0,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The same of the enlarged `coarse`, without the whole of it in memory, forward or back.

        A block of rows at a time is enlarged and goes into the terms' sums; the backward pass enlarges it again. A
        term whose pixels are selected by their values (OHEM) takes a pass more, for these values.

        Args:
          coarse: logits before their enlargement to the labels' size.
          rows: of a block, at least 1; the last block may have fewer of its own.
          labels, where, divisors, step: as in `__call__`.

        Raises:
          JaxsegError: a term has no such form, see `check_by_rows`.
        """
        self.check_by_rows()
        labels = jnp.asarray(labels)
        where = jnp.ones(labels.shape, bool) if where is None else jnp.asarray(where)
        values = jnp.asarray(coarse.values)
        if divisors is None:
            divisors = self.divisors(labels, where=where, num_classes=values.shape[-1])
        forms = {name: loss.by_rows for name, (_, loss) in self.terms.items() if loss.by_rows}
        height, width = labels.shape[-2:]
        source = values.shape[-3], values.shape[-2]
        plan = RowBlocks(source, (height, width), rows, coarse.alignment, coarse.grid)
        sums = row_sums(forms, plan, values, labels, where)
        found = {name: divide(jnp.sum(forms[name].values(sums[name])), divisors[name]) for name in forms}
        return self._weighted(found, step)

    def check_by_rows(self) -> None:
        """Raises JaxsegError where a term is no function of sums over pixels, so that it needs all logits at once."""
        whole = [name for name, (_, loss) in self.terms.items() if loss.by_rows is None]
        if whole:
            raise JaxsegError(
                f"config.train.loss_block_rows: {', '.join(f'config.loss.{name}' for name in whole)} needs all logits "
                "at full size at once, for a sort, for distances or for multi-hot labels. Set loss_block_rows = 0, or "
                "take another loss."
            )

    def _weighted(self, found: dict[str, jax.Array], step: ArrayLike) -> tuple[jax.Array, dict[str, jax.Array]]:
        weights = {name: weight(step) for name, (weight, _) in self.terms.items()}
        weighted = [weights[name].astype(value.dtype) * value for name, value in found.items()]
        return functools.reduce(jnp.add, weighted), found


def row_sums(
    forms: Mapping[str, ByRows], plan: RowBlocks, values: jax.Array, labels: jax.Array, where: jax.Array
) -> dict[str, Any]:
    """The sums of each form over all rows; what selects pixels by their values is found in a pass of its own."""
    seen = {name: form.pixels for name, form in forms.items() if form.pixels}
    maps: dict[str, jax.Array] = {}
    if seen:

        def pixels_of(logits: jax.Array, pixels: Any) -> dict[str, jax.Array]:
            return {name: function(logits, pixels["labels"], pixels["where"]) for name, function in seen.items()}

        maps = map_rows(pixels_of, plan, values, {"labels": labels, "where": where})
    weights = {name: form.weights(maps.get(name), labels, where) for name, form in forms.items() if form.weights}

    def sums_of(logits: jax.Array, pixels: Any) -> dict[str, Any]:
        given = pixels["labels"], pixels["where"], pixels["weights"]
        return {name: form.sums(logits, *given[:2], given[2].get(name)) for name, form in forms.items()}

    return sum_over_rows(sums_of, plan, values, {"labels": labels, "where": where, "weights": weights})


def compose(loss_config: Mapping[str, Any]) -> Composition:
    """The loss that a config describes.

    Args:
      loss_config: name -> weight, or name -> {"weight": ..., options of that loss's build()}; weight is 1 by default.
        `{"cross_entropy": 1.0, "dice": 0.5}`, `{"cross_entropy": {"weight": 1.0, "label_smoothing": 0.1}}`. A weight
        is a number, or a schedule {"start": 1.0, "end": 0.01, "duration_steps": 9900, "every_steps": 100}: linear
        from start to end, then end; with `every_steps` (default 1) it moves only after so many steps, say an epoch.

    Returns:
      `composition(logits, labels, *, where) -> (loss, terms)`, see `Composition`.

    Raises:
      JaxsegError: no term, an unknown name or option (with near matches), or a bad weight.
    """
    terms: dict[str, tuple[Weight, Loss]] = {}
    for name, entry in dict(loss_config).items():
        options = dict(entry) if isinstance(entry, Mapping) or hasattr(entry, "items") else {"weight": entry}
        weight = options.pop("weight", 1.0)
        loss = call_with_options(resolve("losses", name), options, where=f"config.loss.{name}")
        if not isinstance(loss, Loss):
            raise JaxsegError(f"config.loss.{name}: build() returns a {type(loss).__name__}, not a Loss.")
        schedule = _weight(name, weight)
        if weight != 0:
            terms[name] = schedule, loss
    if not terms:
        raise JaxsegError(
            'config.loss has no term with a weight above 0; give one, for example {"cross_entropy": 1.0}.'
        )
    return Composition(terms)


def _weight(name: str, weight: Any) -> Weight:
    key = f"config.loss.{name}.weight"
    if not hasattr(weight, "items"):
        value = _number(weight, key, least=0)
        return lambda step: jnp.asarray(value, jnp.float32)
    for option in weight:
        if option not in SCHEDULE_KEYS:
            raise JaxsegError(f"{key}.{option} is not known. {close_matches(option, SCHEDULE_KEYS)}")
    missing = [option for option in SCHEDULE_KEYS[:3] if option not in weight]
    if missing:
        raise JaxsegError(f"{key} is a schedule without {', '.join(missing)}.")
    start, end = (_number(weight[option], f"{key}.{option}", least=0) for option in SCHEDULE_KEYS[:2])
    duration = _number(weight["duration_steps"], f"{key}.duration_steps", least=1)
    every = _number(weight.get("every_steps", 1), f"{key}.every_steps", least=1)

    def scheduled(step: ArrayLike) -> jax.Array:
        moved = jnp.floor(jnp.asarray(step, jnp.float32) / every) * every
        return start + (end - start) * jnp.minimum(moved / duration, 1.0)

    return scheduled


def _number(value: Any, key: str, *, least: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
        raise JaxsegError(f"{key} is {value!r}; it takes a finite number of at least {least:g}.")
    return float(value)
