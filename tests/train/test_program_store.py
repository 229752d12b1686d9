"""The programs of an earlier start: taken where all is as it was, bit for bit the same, and left where it is not."""

import copy
import dataclasses
import functools
import json
import logging
import os

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.defaults import defaults
from jaxseg.core.errors import JaxsegError
from jaxseg.core.mesh import make_mesh
from jaxseg.tools import train as mode
from jaxseg.train import loop, program_store
from jaxseg.train.ahead import batch_shapes, begin_program, with_kept_initialize
from jaxseg.train.program_store import ProgramStore, names_of_others, program_key
from jaxseg.train.run import make_run, make_training
from jaxseg.train.state import place_state
from jaxseg.train.workdir import flatten
from tests.e2e.tiny import get_config


@pytest.fixture(scope="module")
def run():
    """A small U-Net with batch norm on two devices; the data set is named and not opened."""
    config = get_config()
    config.model = ConfigDict({"name": "unet", "width": 4, "depth": 2, "padding": "same", "batch_norm": True})
    config.model.update({"image_mean": (120.0, 120.0, 120.0), "image_std": (60.0, 60.0, 60.0)})
    config.optimizer = defaults().optimizer  # optax's Adam promotes dtypes, which the tests forbid
    config.train.batch_size = 2
    made = make_run(config, open_data=False)
    return dataclasses.replace(made, mesh=make_mesh(devices=jax.devices()[:2]))


@pytest.fixture(scope="module")
def training(run):
    return make_training(run)


@pytest.fixture
def programs(tmp_path):
    return ProgramStore(tmp_path / "programs")


def files(programs):
    return sorted(programs._folder.glob("*"))


def batch(run):
    shapes, rng = batch_shapes(run), np.random.default_rng(3)
    arrays = {name: rng.integers(0, 3, shape.shape).astype(shape.dtype) for name, shape in shapes.items()}
    return {name: jax.device_put(array, shapes[name].sharding) for name, array in arrays.items()}


class Untraceable:
    """In place of a step: neither traced nor lowered."""

    def __call__(self, *_):
        raise AssertionError("traced again")

    lower = __call__


def untraceable(training):
    return dataclasses.replace(training, step=Untraceable())


def with_config(run, changes):
    """The run with other values at `section.key` in its config."""
    config = copy.deepcopy(run.config)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return dataclasses.replace(run, config=config)


@pytest.mark.parametrize("axis", ["data", "fsdp"])
def test_the_second_start_does_not_trace_and_its_steps_are_the_first_ones_bit_for_bit(run, programs, axis):
    """And those of the step as it is traced, but for the rounding of other fusions."""
    mesh = make_mesh({"data": 1, "fsdp": 1} | {axis: 2}, devices=jax.devices()[:2])
    run = dataclasses.replace(run, mesh=mesh)
    training, given = make_training(run), batch(run)
    state = place_state(training.create(run.initial_variables(run.read_weights())), mesh)
    kept = programs.of(run)
    steps = [begin_program(run, training, kept)(), begin_program(run, untraceable(training), kept)()]
    states, metrics = [copy_of(state), copy_of(state), state], [{}, {}, {}]
    for _ in range(2):
        before = states[1]
        for i, step in enumerate([*steps, training.step]):
            states[i], metrics[i] = step(states[i], given)
    assert int(states[1].step) == 2
    assert np.isfinite(float(metrics[1]["loss"]))
    jax.tree.map(np.testing.assert_array_equal, (states[0], metrics[0]), (states[1], metrics[1]))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, (states[1], metrics[1]), (states[2], metrics[2]))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))  # donated
    placed = [[leaf.sharding for leaf in jax.tree.leaves(state)] for state in states[1:]]
    assert all(a.is_equivalent_to(b, 4) for a, b in zip(*placed, strict=True))
    assert any(not sharding.is_fully_replicated for sharding in placed[0]) == (axis == "fsdp")
    if axis == "data":  # activations stay where their images are
        (path,) = files(programs)
        found = programs.find(path.stem).call
        program = jax.jit(found).lower(jax.tree.leaves(states[1]), given).compile().as_text()
        assert "all-reduce" in program
        assert "all-gather" not in program


def copy_of(state):
    return jax.tree.map(lambda x: jax.device_put(np.asarray(x), x.sharding), state)


def test_without_a_store_nothing_is_kept_and_the_step_is_traced(run, training):
    with pytest.raises(AssertionError, match="traced again"):
        begin_program(run, untraceable(training))


@pytest.mark.parametrize(
    "change",
    [
        {"train.ema_decay": 0.5},
        {"train.total_steps": 31},  # of the schedule
        {"data.crop_size_px": (48, 64)},
        {"loss.cross_entropy": 2.0},
        {"loss.focal": ConfigDict({"weight": 1.0, "class_weights": (1.0,) * 21})},
    ],
)
def test_another_config_is_another_program(run, change):
    assert program_key(with_config(run, change)) != program_key(run)


def test_what_does_not_reach_a_program_keeps_the_program(run):
    other = {"train.log_every_steps": 7, "evaluate.every_steps": 3, "data.workers": 0, "checkpoint.keep": 9, "seed": 5}
    assert program_key(with_config(run, other)) == program_key(run)


def test_class_weights_are_told_by_their_numbers_and_not_by_their_file(run, tmp_path):
    """A file that is written anew has the old name."""
    path, keys = tmp_path / "weights.json", []
    named = with_config(run, {"loss.focal": ConfigDict({"weight": 1.0, "class_weights": str(path)})})
    for weight in (1.0, 2.0, 1.0):
        classes = list(run.info.class_names)
        path.write_text(json.dumps({"classes": classes, "class_weights": [weight] * len(classes)}))
        keys.append(program_key(named))
    assert keys[0] == keys[2] != keys[1]


def test_another_mesh_data_set_option_or_variable_is_another_program(run, monkeypatch):
    keys = [program_key(run)]
    keys.append(program_key(dataclasses.replace(run, mesh=make_mesh(devices=jax.devices()[1:3]))))
    keys.append(
        program_key(dataclasses.replace(run, mesh=make_mesh({"data": 1, "fsdp": 2}, devices=jax.devices()[:2])))
    )
    keys.append(program_key(dataclasses.replace(run, info=dataclasses.replace(run.info, void=254))))
    with jax.default_matmul_precision("float32"):
        keys.append(program_key(run))
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    keys.append(program_key(run))
    monkeypatch.undo()
    assert len(set(keys)) == len(keys)
    assert program_key(run) == keys[0]


@pytest.mark.parametrize("whose", ["ours", "a package's"])
def test_an_edited_source_is_another_program(run, tmp_path, monkeypatch, whose):
    """Of the same size, and for a package of the same version: ours by its text, theirs by its time."""
    folder, empty = tmp_path / "edited", tmp_path / "empty"
    for made in (folder, empty):
        made.mkdir()
    monkeypatch.setattr(program_store, "SOURCES", folder if whose == "ours" else empty)
    package = type("Package", (), {"__file__": str((empty if whose == "ours" else folder) / "__init__.py")})
    monkeypatch.setattr(program_store, "TRACED_WITH", (package,))
    keys = []
    for rate in (1, 2):
        (folder / "ops.py").write_text(f"RATE = {rate}\n")
        os.utime(folder / "ops.py", (1000, 1000 if whose == "ours" else 1000 + rate))
        keys += [program_key(run), program_key(run)]
    assert keys[0] == keys[1] != keys[2] == keys[3]


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"model": {"name": "numpy.net"}}, ["numpy.net"]),
        ({"loss": {"numpy.losses.mine": 1.0}}, ["numpy.losses.mine"]),
        ({"evaluate": {"metrics": ("confusion", "numpy.mine")}}, ["numpy.mine"]),
        ({"model": {"name": "deeplab_v3"}, "weights": {"path": "nowhere_to_import.npz"}, "rate": 0.1}, []),
    ],
)
def test_names_of_modules_outside_are_told_from_files(config, names):
    assert names_of_others(flatten(config)) == names


def test_a_users_own_piece_and_several_processes_keep_nothing(run, programs, monkeypatch):
    assert program_key(with_config(run, {"objective": "numpy.objective"})) is None
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert program_key(run) is None
    assert programs.of(run) is None


class Wrong:
    """In place of a network that is not as it should be."""

    def init(self, *_, **__):
        raise JaxsegError("traced")


def test_the_second_start_does_not_trace_the_initial_values_and_they_are_the_same(run, programs):
    """Shapes too; those of another seed are of the same program; no other run's are taken."""
    first = with_kept_initialize(run, programs.of(run))
    second = with_kept_initialize(dataclasses.replace(run, model=Wrong()), programs.of(run))
    assert [file.name for file in files(programs)] == [f"{program_key(run)}_initialize.stablehlo"]
    assert second.variable_shapes() == first.variable_shapes() == run.variable_shapes()
    values = [made.initial_variables(made.read_weights()) for made in (run, first, second)]
    jax.tree.map(np.testing.assert_array_equal, values[0], values[1])
    jax.tree.map(np.testing.assert_array_equal, values[0], values[2])
    for made, traced in ((second, run), (with_config(second, {"seed": 5}), with_config(run, {"seed": 5}))):
        states = [make_training(each).first_state(each.read_weights()) for each in (made, traced)]
        rngs = [jax.random.key_data(state.rng) for state in states]
        np.testing.assert_array_equal(*rngs)
        jax.tree.map(np.testing.assert_array_equal, states[0].params, states[1].params)
    other = dataclasses.replace(with_config(run, {"loss.focal": 1.0}), model=Wrong())
    with pytest.raises(JaxsegError, match=r"^traced\b"):
        with_kept_initialize(other, programs.of(other))


def test_training_takes_both_programs_from_the_store(run, programs, tmp_path, monkeypatch):
    """Of two trainings the second has nothing to trace; the third has no store."""

    class Enough(Exception):
        pass

    def enough(*given):
        raise Enough

    monkeypatch.setattr(loop, "open_train_batches", lambda _: Batches())
    monkeypatch.setattr(loop, "run_steps", enough)
    with pytest.raises(Enough):
        loop.train(run, tmp_path / "first", [], programs)
    assert len(files(programs)) == 2
    again = dataclasses.replace(run, model=Wrong())
    with pytest.raises(Enough):
        loop.train(again, tmp_path / "second", [], programs)
    with pytest.raises(JaxsegError, match=r"^traced\b"):
        loop.train(again, tmp_path / "third", [])


class Batches:
    """In place of the input."""

    def start_prefetch(self):
        pass

    def close(self):
        pass


class Kept:
    """In place of an exported program."""

    def serialize(self):
        return b"payload" * 9


def test_a_damaged_file_is_said_and_not_taken(programs, caplog, monkeypatch):
    monkeypatch.setattr(program_store, "deserialize", bytes)
    programs.save("a", Kept())
    (path,) = files(programs)
    assert programs.find("a") == b"payload" * 9
    whole = path.read_bytes()
    for content in (whole[:-1], b"", whole[:40] + b"X" + whole[41:], b"X" + whole[1:]):
        path.write_bytes(content)
        with caplog.at_level(logging.WARNING):
            assert programs.find("a") is None
        assert "a.stablehlo is damaged" in caplog.text
        caplog.clear()
    assert programs.find("b") is None
    assert caplog.text == ""


def test_the_newest_stay(programs, monkeypatch):
    monkeypatch.setattr(program_store, "KEPT", 3)
    for key in "edcba":
        programs.save(key, Kept())
    assert [file.name for file in files(programs)] == ["a.stablehlo", "b.stablehlo", "c.stablehlo"]


def test_a_folder_that_cannot_be_used_is_said_and_stops_nothing(programs, caplog):
    programs._folder.write_text("a file where the folder should be")
    assert programs.find("a") is None
    assert "a.stablehlo'; the program is traced again." in caplog.text
    programs.save("a", Kept())
    assert "not kept for the next start: [Errno" in caplog.text


def test_a_step_that_cannot_be_kept_is_compiled_all_the_same(run, training, programs, caplog):
    """One that calls the host, as a `jax.debug.print` in a network does, has no form on disk."""

    def told(state, batch):
        jax.debug.callback(seen.append, state.step)
        return training.step(state, batch)

    seen = []
    state = place_state(training.create(run.initial_variables(run.read_weights())), run.mesh)
    telling = dataclasses.replace(training, step=jax.jit(told))
    with caplog.at_level(logging.WARNING):
        program = begin_program(run, telling, programs.of(run))()
    assert "not kept for the next start: serialization of host_callbacks" in caplog.text
    assert int(program(state, batch(run))[0].step) == 1
    jax.effects_barrier()
    assert [int(step) for step in seen] == [0]
    assert files(programs) == []


def test_what_is_wrong_with_the_network_is_raised_as_it_is_and_traced_once(run, training, programs):
    calls = []

    def wrong(*_):
        calls.append(1)
        raise ValueError("the network's own")

    with pytest.raises(ValueError, match="the network's own"):
        begin_program(run, dataclasses.replace(training, step=wrong), programs.of(run))
    assert calls == [1]


def test_training_by_command_keeps_its_steps_beside_xlas_programs(tmp_path, monkeypatch):
    """In the folder that the command sets; none where there is no compilation cache."""
    folders = []
    monkeypatch.setattr(mode, "make_run", lambda _: None)
    monkeypatch.setattr(mode, "train", lambda *given: folders.append(given[3] and given[3]._folder))
    before = jax.config.values["jax_compilation_cache_dir"]
    try:
        for cache in (str(tmp_path), None):
            jax.config.update("jax_compilation_cache_dir", cache)
            assert mode.train_mode(None, tmp_path / "run", started=0.0) == 0
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert folders == [tmp_path / "traced", None]
