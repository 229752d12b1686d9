"""The loss of a config: a weighted sum of terms, each divided by its own count over the whole batch."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxseg.core.errors import JaxsegError
from jaxseg.core.names import call_with_options, close_matches, resolve
from jaxseg.losses.reduction import Loss, divide

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
        weights = {name: weight(step) for name, (weight, _) in self.terms.items()}
        weighted = [weights[name].astype(value.dtype) * value for name, value in found.items()]
        return functools.reduce(jnp.add, weighted), found


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
