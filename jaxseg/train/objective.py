"""What is optimised, in the three parts that let a batch be worked through in pieces without changing the result."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss of a model's outputs.

    Attributes:
      forward: `(params, model_state, batch, keys) -> (outputs, updated model_state)`; outputs are arrays `[b, ...]`,
        or trees of such, that the loss takes, `logits` among them.
      divisors: `(batch) -> pytree`: what the loss divides by, from the labels of the whole batch.
      loss: `(outputs, batch, divisors, step) -> (loss, terms)`: a scalar, and named scalars to show beside it. Both of
        a part of a batch, with the divisors of the whole, add up to those of the batch, unless `whole_batch`.
      whole_batch: the loss needs the outputs of all images at once.
    """

    forward: Callable[..., tuple[Any, Any]]
    divisors: Callable[..., Any]
    loss: Callable[..., tuple[Any, dict[str, Any]]]
    whole_batch: bool = False
