"""Schedules against the papers' numbers, rules by name, optimisers against steps computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.train.optim import make_optimizer, make_schedule, match_rules

CONSTANT = {"name": "constant", "base": 0.1}
ALL = ({"pattern": ".*"},)


def params():
    return {
        "backbone": {"conv": {"kernel": jnp.asarray([1.0, -2.0])}, "norm": {"scale": jnp.asarray([3.0])}},
        "head": {"kernel": jnp.asarray([0.5])},
    }


def test_poly_has_the_values_of_deeplab():
    schedule = make_schedule({"name": "poly", "base": 0.01, "power": 0.9}, 100)
    steps = np.asarray([1, 50, 99, 100, 120])
    np.testing.assert_allclose([schedule(s) for s in steps], [0.00990995, 0.00535887, 0.00015849, 0, 0], rtol=2e-5)


def test_cosine_ends_at_end_and_is_halfway_in_the_middle():
    schedule = make_schedule({"name": "cosine", "base": 1.0, "end": 0.2}, 10)
    np.testing.assert_allclose([schedule(0), schedule(5), schedule(10)], [1.0, 0.6, 0.2], rtol=1e-6)


def test_step_falls_at_each_boundary():
    schedule = make_schedule({"name": "step", "base": 1.0, "boundaries_steps": (3, 6), "factor": 0.1}, 10)
    np.testing.assert_allclose([schedule(s) for s in (0, 2, 3, 5, 6, 9)], [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-5)


def test_exponential_falls_every_few_steps():
    schedule = make_schedule({"name": "exponential", "base": 2.0, "factor": 0.5, "every_steps": 3}, 10)
    np.testing.assert_allclose([schedule(s) for s in (0, 2, 3, 5, 6, 9)], [2, 2, 1, 1, 0.5, 0.25], rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_rmsprop_by_hand(momentum):
    options = {"name": "rmsprop", "rho": 0.75, "eps": 0.1, "momentum": momentum, "schedule": CONSTANT, "rules": ALL}
    optimizer = make_optimizer(options, {"w": jnp.asarray(1.0)}, total_steps=10)
    w, state = {"w": jnp.asarray(1.0)}, optimizer.init({"w": jnp.asarray(1.0)})
    square, speed, expected = 0.0, 0.0, 1.0
    for gradient in (2.0, -1.0):
        w, state, _ = optimizer.update({"w": jnp.asarray(gradient)}, state, w)
        square = 0.75 * square + 0.25 * gradient**2
        speed = momentum * speed + gradient / (square**0.5 + 0.1)
        expected -= 0.1 * speed
        np.testing.assert_allclose(w["w"], expected, rtol=1e-5)


def test_warm_up_is_linear_and_starts_above_zero():
    schedule = make_schedule({**CONSTANT, "warmup_steps": 4}, 10)
    np.testing.assert_allclose([schedule(s) for s in range(6)], [0.025, 0.05, 0.075, 0.1, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "ploy", "base": 1.0}, "poly"),
        ({"name": "poly", "base": 1.0, "powr": 1.0}, "power"),
        ({"name": "constant", "base": 1.0, "warmup_steps": 11}, "0..10"),
        ({"name": "step", "base": 1.0, "boundaries_steps": (6, 3)}, "must rise"),
        ({"name": "exponential", "base": 1.0, "factor": 1.5}, "factor = 1.5"),
    ],
)
def test_a_bad_schedule_is_named(options, words):
    with pytest.raises(JaxsegError, match=words):
        make_schedule(options, 10)


def test_the_first_matching_rule_counts():
    rules = ({"pattern": "scale$"}, {"pattern": "^backbone/", "learning_rate_multiplier": 0.1}, {"pattern": ".*"})
    matched = match_rules(rules, params())
    assert matched["backbone"]["norm"]["scale"].pattern == "scale$"
    assert matched["backbone"]["conv"]["kernel"].learning_rate_multiplier == 0.1
    assert matched["head"]["kernel"].pattern == ".*"


def test_a_parameter_without_a_rule_is_an_error_that_names_it():
    with pytest.raises(JaxsegError, match="head/kernel"):
        match_rules(({"pattern": "^backbone/"},), params())


def test_a_rule_that_never_counts_is_an_error():
    with pytest.raises(JaxsegError, match="decoder"):
        match_rules(({"pattern": "decoder"}, {"pattern": ".*"}), params())


def test_an_unknown_rule_key_lists_the_near_one():
    with pytest.raises(JaxsegError, match="weight_decay"):
        match_rules(({"pattern": ".*", "weight_decy": 1.0},), params())


def one_step(options, gradient=1.0, steps=1, **keywords):
    tree = params()
    optimizer = make_optimizer(options, tree, total_steps=10, **keywords)
    state = optimizer.init(tree)
    for _ in range(steps):
        grads = jax.tree.map(lambda p: jnp.full_like(p, gradient), tree)
        tree, state, _ = jax.jit(optimizer.update)(grads, state, tree)
    return tree


def test_sgd_with_momentum_and_coupled_decay_by_hand():
    rules = ({"pattern": "^backbone/", "weight_decay": 0.5, "learning_rate_multiplier": 2.0}, {"pattern": ".*"})
    tree = one_step({"name": "sgd", "momentum": 0.9, "schedule": CONSTANT, "rules": rules}, steps=2)
    # kernel[0]: g1 = 1 + .5 = 1.5, p = 1 - .2 * 1.5 = .7; g2 = 1 + .35 = 1.35, m = .9 * 1.5 + 1.35 = 2.7, p = .16
    np.testing.assert_allclose(tree["backbone"]["conv"]["kernel"][0], 0.16, rtol=1e-5)
    # head: no decay, rate 0.1: 0.5 - 0.1 - 0.19
    np.testing.assert_allclose(tree["head"]["kernel"][0], 0.21, rtol=1e-5)


def test_adamw_first_step_is_the_sign_plus_decoupled_decay():
    rules = ({"pattern": ".*", "weight_decay": 0.5},)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to its integer count
        tree = one_step({"name": "adamw", "schedule": CONSTANT, "rules": rules}, gradient=7.0)
    np.testing.assert_allclose(tree["backbone"]["conv"]["kernel"], [1 - 0.1 * 1.5, -2 - 0.1 * 0], rtol=1e-5)


def test_frozen_parameters_stay_and_do_not_count_in_the_clipped_norm():
    rules = ({"pattern": "^backbone/", "freeze": True, "weight_decay": 9.0}, {"pattern": ".*"})
    tree = one_step({"name": "sgd", "momentum": 0.0, "schedule": CONSTANT, "rules": rules}, gradient=4.0, clip_norm=2.0)
    np.testing.assert_array_equal(tree["backbone"]["conv"]["kernel"], params()["backbone"]["conv"]["kernel"])
    np.testing.assert_allclose(tree["head"]["kernel"], [0.5 - 0.1 * 2.0], rtol=1e-6)


def test_an_unknown_optimizer_or_option_is_named():
    with pytest.raises(JaxsegError, match="adamw"):
        make_optimizer({"name": "adam", "schedule": CONSTANT, "rules": ALL}, params(), total_steps=10)
    with pytest.raises(JaxsegError, match="momentum"):
        make_optimizer({"name": "sgd", "momentm": 1, "schedule": CONSTANT, "rules": ALL}, params(), total_steps=10)
