"""Optimiser, learning-rate schedule and rules by parameter name, from the config."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxseg.core.errors import JaxsegError
from jaxseg.core.names import call_with_options, close_matches
from jaxseg.train.bundle import Bundle, Bundled

Schedule = Callable[[jax.Array | int], jax.Array]


@dataclasses.dataclass(frozen=True)
class Rule:
    """How parameters whose path matches `pattern` are trained.

    Attributes:
      pattern: regular expression, searched in the path `backbone/stem/conv/kernel`; the first rule that matches counts.
      learning_rate_multiplier: factor on the schedule.
      weight_decay: L2 factor: added to the gradient (sgd, rmsprop) or decoupled (adamw).
      freeze: the parameter keeps its value, and no gradient is computed for it.
    """

    pattern: str
    learning_rate_multiplier: float = 1.0
    weight_decay: float = 0.0
    freeze: bool = False


def polynomial(*, base: float, total_steps: int, power: float = 0.9, end: float = 0.0) -> Schedule:
    """`end + (base - end) (1 - step / total_steps) ** power`, the "poly" policy of DeepLab (arXiv 1606.00915)."""
    return lambda step: end + (base - end) * (1 - jnp.minimum(step, total_steps) / total_steps) ** power


def cosine(*, base: float, total_steps: int, end: float = 0.0) -> Schedule:
    """`end + (base - end) (1 + cos(pi step / total_steps)) / 2` (arXiv 1608.03983, without restarts)."""
    return lambda step: end + (base - end) * (1 + jnp.cos(jnp.pi * jnp.minimum(step, total_steps) / total_steps)) / 2


def constant(*, base: float, total_steps: int) -> Schedule:
    """`base` at every step."""
    del total_steps
    return lambda step: jnp.asarray(base, jnp.float32)


def step_decay(*, base: float, total_steps: int, boundaries_steps: Sequence[int], factor: float = 0.1) -> Schedule:
    """`base * factor ** (number of boundaries <= step)`."""
    if list(boundaries_steps) != sorted(boundaries_steps) or any(b > total_steps for b in boundaries_steps):
        raise JaxsegError(
            f"config.optimizer.schedule.boundaries_steps {tuple(boundaries_steps)} must rise and end by {total_steps}."
        )
    edges = jnp.asarray(tuple(boundaries_steps), jnp.int32)
    return lambda step: base * factor ** jnp.sum(jnp.asarray(step, jnp.int32) >= edges).astype(jnp.float32)


def exponential(*, base: float, total_steps: int, factor: float, every_steps: int = 1) -> Schedule:
    """`base * factor ** floor(step / every_steps)`: FC-DenseNet's 0.995 an epoch (arXiv 1611.09326)."""
    del total_steps
    if every_steps < 1 or not 0 < factor <= 1:
        raise JaxsegError(
            f"config.optimizer.schedule: every_steps = {every_steps} must be at least 1, factor = {factor} in (0, 1]."
        )
    return lambda step: base * factor ** jnp.floor(jnp.asarray(step, jnp.float32) / every_steps)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "poly": polynomial,
    "cosine": cosine,
    "constant": constant,
    "step": step_decay,
    "exponential": exponential,
}


def make_schedule(options: Mapping[str, Any], total_steps: int) -> Schedule:
    """The learning rate as a function of the step, after a linear warm-up.

    During the first `warmup_steps` the rate is `schedule(step) * (step + 1) / warmup_steps`.

    Args:
      options: `name` (poly, cosine, constant, step, exponential), `base`, optional `warmup_steps`, and the schedule's
        own options.
      total_steps: length of the run.
    """
    options = dict(options)
    name, warmup = options.pop("name"), options.pop("warmup_steps", 0)
    if name not in SCHEDULES:
        raise JaxsegError(f"config.optimizer.schedule.name {name!r} does not exist. {close_matches(name, SCHEDULES)}")
    schedule = call_with_options(SCHEDULES[name], options, where="config.optimizer.schedule", total_steps=total_steps)
    if not 0 <= warmup <= total_steps:
        raise JaxsegError(f"config.optimizer.schedule.warmup_steps = {warmup} must lie in 0..{total_steps}.")
    if warmup == 0:
        return schedule
    return lambda step: schedule(step) * jnp.minimum(1.0, (step + 1) / warmup)


def parameter_paths(params: Any) -> Any:
    """A tree like `params` with each leaf's path, `a/b/kernel`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "/".join(str(p.key) for p in path), params)


def match_rules(rules: Sequence[Mapping[str, Any]], params: Any) -> Any:
    """A tree like `params` with the Rule of each leaf.

    Raises:
      JaxsegError: a parameter that no rule matches, or a rule that matches nothing.
    """
    fields = {f.name for f in dataclasses.fields(Rule)}
    for i, rule in enumerate(rules):
        for key in rule:
            if key not in fields:
                raise JaxsegError(f"config.optimizer.rules[{i}].{key} is not known. {close_matches(key, fields)}")
    parsed = [Rule(**rule) for rule in rules]
    used: set[int] = set()
    missed: list[str] = []

    def find(path: str) -> Rule:
        for i, rule in enumerate(parsed):
            if re.search(rule.pattern, path):
                used.add(i)
                return rule
        missed.append(path)
        return Rule("")

    matched = jax.tree.map(find, parameter_paths(params))
    if missed:
        shown = ", ".join(missed[:5]) + (f" and {len(missed) - 5} more" if len(missed) > 5 else "")
        raise JaxsegError(
            f"config.optimizer.rules: no rule matches {shown}. End the rules with one whose pattern is '.*'."
        )
    idle = [parsed[i].pattern for i in range(len(parsed)) if i not in used]
    if idle:
        paths = jax.tree.leaves(parameter_paths(params))
        raise JaxsegError(
            f"config.optimizer.rules: the pattern {idle[0]!r} is never the first to match; parameters look like "
            f"{paths[0]} and {paths[-1]}. Correct it, move it up, or take it out."
        )
    return matched


def _scale_by_tree(factors: Any) -> optax.GradientTransformation:
    """Multiplies each leaf by its own constant."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors))


def _add_decay(factors: Any) -> optax.GradientTransformation:
    """Adds `factor * parameter` to each leaf."""

    def update(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda u, p, f: u + f * p if f else u, updates, params, factors)

    return optax.stateless(update)


def sgd(*, decay: optax.GradientTransformation, momentum: float = 0.9, nesterov: bool = False) -> tuple[Any, ...]:
    """Momentum SGD; weight decay is added to the gradient, as the segmentation literature does."""
    return decay, optax.trace(momentum, nesterov=nesterov)


def adamw(
    *, decay: optax.GradientTransformation, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> tuple[Any, ...]:
    """Adam with decoupled weight decay (arXiv 1711.05101)."""
    return optax.scale_by_adam(b1, b2, eps), decay


def rmsprop(
    *, decay: optax.GradientTransformation, rho: float = 0.9, eps: float = 1e-8, momentum: float = 0.0
) -> tuple[Any, ...]:
    """`g / (sqrt(v) + eps)`, `v = rho v + (1 - rho) g^2` from 0; weight decay is added to the gradient."""
    return decay, optax.scale_by_rms(rho, eps, eps_in_sqrt=False), *((optax.trace(momentum),) if momentum else ())


OPTIMIZERS: dict[str, Callable[..., tuple[Any, ...]]] = {"sgd": sgd, "adamw": adamw, "rmsprop": rmsprop}


class Update(NamedTuple):
    """What an update gives: new `params`, new `state`, and the global norm of the gradients as they came."""

    params: Any
    state: Any
    gradient_norm: jax.Array


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The optimiser of a run.

    Attributes:
      schedule: the learning rate of a step.
      chain: the transformation; it updates what `bundle` makes of parameters and gradients.
      bundle: which parameters lie end to end during the update.
      frozen: a tree like the parameters: which of them keep their values.
    """

    schedule: Schedule
    chain: optax.GradientTransformation
    bundle: Bundle
    frozen: Any

    def trained(self, params: Any) -> Any:
        """`params`, of which the frozen ones have the gradient 0, so that what is for theirs alone is not computed."""
        return jax.tree.map(lambda p, frozen: jax.lax.stop_gradient(p) if frozen else p, params, self.frozen)

    def init(self, params: Any) -> Any:
        """The state of step 0: trees like the parameters, whatever lies end to end."""
        return self.chain.init(params)

    def update(self, grads: Any, state: Any, params: Any) -> Update:
        """One update of `params`; `state` is of `init` or of the last update."""
        witness = jax.tree.leaves(params)[0].ravel()[0]
        bundle = self.bundle
        joined, values = bundle.join(grads, witness), bundle.join(params, witness)
        moments = jax.tree.map(
            lambda t: bundle.join(t, witness) if bundle.is_like(t) else t, state, is_leaf=bundle.is_like
        )
        changes, moments = self.chain.update(joined, moments, values)
        is_bundled = lambda t: isinstance(t, Bundled)  # noqa: E731
        return Update(
            bundle.split(optax.apply_updates(values, changes), witness),
            jax.tree.map(lambda t: bundle.split(t, witness) if is_bundled(t) else t, moments, is_leaf=is_bundled),
            optax.tree.norm(joined),
        )


def make_optimizer(
    options: Mapping[str, Any], params: Any, *, total_steps: int, clip_norm: float = 0.0, small: int = 0
) -> Optimizer:
    """The optimiser and its schedule.

    Args:
      options: `config.optimizer`: `name` (sgd, adamw, rmsprop) and its options, `schedule`, `rules`.
      params: parameter tree, or shapes of it.
      total_steps: length of the run.
      clip_norm: largest global norm of the trained parameters' gradient; 0 leaves it as it is.
      small: parameters of at most that many numbers lie end to end during the update; a run takes `bundle.small_on`.
    """
    options = dict(options)
    name, schedule_options, rules = options.pop("name"), options.pop("schedule"), options.pop("rules")
    if name not in OPTIMIZERS:
        raise JaxsegError(f"config.optimizer.name {name!r} does not exist. {close_matches(name, OPTIMIZERS)}")
    if clip_norm < 0:
        raise JaxsegError(f"config.train.clip_norm = {clip_norm} must be positive, or 0 for none.")
    schedule = make_schedule(schedule_options, total_steps)
    matched = match_rules(rules, params)
    bundle = Bundle.of(params, matched, small=small)
    decay = _add_decay(bundle.each(lambda r: 0.0 if r.freeze else r.weight_decay, matched))
    trained = _scale_by_tree(bundle.each(lambda r: 0.0 if r.freeze else 1.0, matched))
    rates = _scale_by_tree(bundle.each(lambda r: 0.0 if r.freeze else r.learning_rate_multiplier, matched))
    clip = (optax.clip_by_global_norm(clip_norm),) if clip_norm else ()
    core = call_with_options(OPTIMIZERS[name], options, where="config.optimizer", decay=decay)
    descent = optax.scale_by_learning_rate(schedule)
    frozen = jax.tree.map(lambda rule: rule.freeze, matched)
    return Optimizer(schedule, optax.chain(trained, *clip, *core, rates, descent), bundle, frozen)
