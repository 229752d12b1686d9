"""What a run does before its first step: initial values, and the step's program made beside them."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from experiments.defaults import defaults
from jaxseg.core.errors import JaxsegError
from jaxseg.core.mesh import put_batch
from jaxseg.core.rng import base_key
from jaxseg.train.ahead import batch_shapes, compiled_ahead
from jaxseg.train.loop import open_train_batches
from jaxseg.train.run import make_run, make_training
from jaxseg.train.state import place_state
from jaxseg.train.step import TRAINED_FIELDS
from tests.e2e.tiny import get_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = get_config()
    config.optimizer = defaults().optimizer  # optax's Adam promotes dtypes, which the tests forbid
    config.data.update({"data_dir": str(tmp_path_factory.mktemp("data")), "workers": 0})
    return make_run(config)


def test_initial_values_at_little_optimisation_are_those_of_the_plain_program(run):
    made = run.initial_variables()
    key = jax.random.fold_in(base_key(run.config.seed), 0x1717)
    jax.tree.map(np.testing.assert_array_equal, made, jax.jit(run.initialize)(key))
    assert len(jax.tree.leaves(made)) > 50


def test_the_program_made_ahead_takes_what_the_input_gives_and_steps_as_the_plain_one(run):
    training = make_training(run)
    with contextlib.closing(open_train_batches(run)) as batches:
        first = next(batches)
    batch = put_batch(run.mesh, {name: first[name] for name in TRAINED_FIELDS})
    described = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), batch)
    assert described == jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), batch_shapes(run))
    with compiled_ahead(run, training) as program:
        state = training.first_state()
        step = program()
    ahead = step(place_state(state, run.mesh), batch)
    plain = training.step(place_state(state, run.mesh), batch)
    jax.tree.map(np.testing.assert_array_equal, ahead, plain)
    assert int(ahead[0].step) == 1


def test_what_tracing_raises_reaches_the_run(run):
    def lower(*_):
        raise JaxsegError("input smaller than the network's minimum")

    training = dataclasses.replace(make_training(run), step=type("Step", (), {"lower": staticmethod(lower)}))
    with compiled_ahead(run, training) as program, pytest.raises(JaxsegError, match="the network's minimum"):
        program()
