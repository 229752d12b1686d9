"""What a run does before its first step: initial values, and the step's program made beside them."""

import contextlib
import copy
import dataclasses
import gc
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.defaults import defaults
from jaxseg.core.errors import JaxsegError
from jaxseg.core.mesh import make_mesh, put_batch
from jaxseg.core.rng import base_key
from jaxseg.train import loop
from jaxseg.train.ahead import batch_shapes, begin_program
from jaxseg.train.loop import open_train_batches
from jaxseg.train.run import _LITTLE, make_run, make_training
from jaxseg.train.state import place_state, placed_shapes
from jaxseg.train.step import TRAINED_FIELDS
from tests.conftest import DEFAULT
from tests.e2e.tiny import get_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = get_config()
    config.optimizer = defaults().optimizer  # optax's Adam promotes dtypes, which the tests forbid
    config.data.update({"data_dir": str(tmp_path_factory.mktemp("data")), "workers": 0})
    return make_run(config)


def test_initial_values_at_little_optimisation_are_those_of_the_plain_program(run, monkeypatch):
    """Beside the defaults of XLA, from which the tests' own options differ."""
    monkeypatch.setattr("jaxseg.train.run._LITTLE", DEFAULT | _LITTLE)
    run = dataclasses.replace(run)  # nothing is compiled yet
    made = run.initial_variables(run.read_weights())
    key = jax.random.fold_in(base_key(run.config.seed), 0x1717)
    jax.tree.map(np.testing.assert_array_equal, made, jax.jit(run.initialize, compiler_options=DEFAULT)(key))
    assert len(jax.tree.leaves(made)) > 50


def test_what_the_file_of_weights_lacks_keeps_its_seeded_values(run):
    """One array is given, of threes; all others are those of a run without a file."""
    seeded, (name, *_) = run.initial_variables(run.read_weights()), run.variable_shapes()["params"]
    weights = run.read_weights()
    weights["params"][name] = jax.tree.map(lambda a: jnp.full(a.shape, 3, a.dtype), weights["params"][name])
    made = run.initial_variables(weights)
    assert all(np.all(np.asarray(a) == 3) for a in jax.tree.leaves(made["params"].pop(name)))
    del seeded["params"][name]
    jax.tree.map(np.testing.assert_array_equal, made, seeded)


def test_the_program_made_ahead_takes_what_the_input_gives_and_steps_as_the_plain_one(run):
    training = make_training(run)
    with contextlib.closing(open_train_batches(run)) as batches:
        first = next(batches)
    batch = put_batch(run.mesh, {name: first[name] for name in TRAINED_FIELDS})
    described = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), batch)
    assert described == jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), batch_shapes(run))
    program = begin_program(run, training)
    ahead = program()(place_state(training.first_state(run.read_weights()), run.mesh), batch)
    plain = training.step(place_state(training.first_state(run.read_weights()), run.mesh), batch)
    jax.tree.map(np.testing.assert_array_equal, ahead, plain)
    assert int(ahead[0].step) == 1


@pytest.mark.parametrize(("fsdp", "together"), [(1, True), (2, False)])
def test_small_parameters_lie_together_where_none_is_split(run, fsdp, together):
    """The update's vector of biases and scales is in the program traced for one mesh and not in the other's."""
    mesh = make_mesh({"data": -1, "fsdp": fsdp, "space": 1}, devices=jax.devices()[:2])
    there = dataclasses.replace(run, mesh=mesh)
    training = make_training(there)
    params = jax.tree.leaves(training.abstract.params)
    text = str(training.step.trace(placed_shapes(training.abstract, mesh), batch_shapes(there)).jaxpr)
    total = sum(leaf.size for leaf in params if leaf.ndim == 1)
    assert sum(leaf.ndim == 1 for leaf in params) > 10
    widest = max((int(size) for size in re.findall(r":f32\[(\d+)\] = concatenate", text)), default=0)
    assert (widest >= total) == together


def test_what_tracing_raises_comes_before_the_state_and_the_collector_is_on_again(run, tmp_path, monkeypatch):
    collecting = []

    def lower(*_):
        collecting.append(gc.isenabled())
        raise JaxsegError("input smaller than the network's minimum")

    def state(_):
        raise AssertionError("computed in vain")

    training = dataclasses.replace(
        make_training(run), step=type("Step", (), {"lower": staticmethod(lower)}), first_state=state
    )
    monkeypatch.setattr(loop, "make_training", lambda _: training)
    with pytest.raises(JaxsegError, match="the network's minimum"):
        loop.train(run, tmp_path / "run", [])
    assert collecting == [False]
    assert gc.isenabled()


def test_weights_that_cannot_be_read_are_found_before_a_program_or_workers_begin(run, tmp_path, monkeypatch):
    def begun(*_):
        raise AssertionError("the process would wait for it")

    monkeypatch.setattr(loop, "begin_program", begun)
    monkeypatch.setattr("jaxseg.data.pipeline.TrainIterator.start_prefetch", begun)
    config = copy.deepcopy(run.config)
    config.weights.update({"path": str(tmp_path / "nowhere.npz"), "table": "torchvision_resnet"})
    with pytest.raises(JaxsegError, match=r"nowhere\.npz"):
        loop.train(dataclasses.replace(run, config=config), tmp_path / "run", [])
