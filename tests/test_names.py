"""Every name in every config of experiments/ leads somewhere, and every config keeps to the rules for configs."""

import importlib
import inspect
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from ml_collections import config_flags

from jaxseg.core.names import call_with_options, known_names, resolve
from jaxseg.core.types import DatasetInfo
from jaxseg.losses.composition import compose
from jaxseg.train.optim import make_optimizer

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
MAX_LINES = 150


def experiments():
    """(module name, argument) of each file with a `get_config`: without and with the arguments its docstring names."""
    found = []
    for path in sorted((REPOSITORY / "experiments").glob("*.py")):
        module = importlib.import_module(f"experiments.{path.stem}")
        if hasattr(module, "get_config"):
            named = re.findall(rf"{path.stem}\.py:(\w+)", module.__doc__)
            found += [(path.stem, argument) for argument in (None, *sorted(set(named)))]
    return found


EXPERIMENTS = experiments()


def load(name, argument):
    return importlib.import_module(f"experiments.{name}").get_config(argument)


def build_model(config, num_classes):
    options = config.model.to_dict()
    for key in ("image_mean", "image_std"):
        assert len(options.pop(key)) == 3
    build = resolve("models", options.pop("name"))
    return call_with_options(build, options, where="config.model", num_classes=num_classes, dtype=jnp.float32)


def test_there_are_experiments():
    assert ("deeplab_voc", "demo") in EXPERIMENTS and ("deeplab_camvid", None) in EXPERIMENTS


@pytest.mark.parametrize(("name", "argument"), EXPERIMENTS)
def test_every_name_resolves(name, argument):
    config = load(name, argument)
    info = resolve("data.catalog", config.data.name, "INFO")
    assert isinstance(info, DatasetInfo) and info.name == config.data.name
    assert callable(resolve("data.builders", config.data.name))
    assert callable(compose(config.loss.to_dict()))
    assert callable(resolve("train.objectives", config.objective))
    if config.weights.table:
        assert config.weights.table in known_names("weights.tables")


@pytest.mark.parametrize(("name", "argument"), EXPERIMENTS)
def test_the_model_builds_and_each_parameter_has_its_rule(name, argument):
    config = load(name, argument)
    info = resolve("data.catalog", config.data.name, "INFO")
    model = build_model(config, info.num_classes)
    image = jax.ShapeDtypeStruct((1, 65, 49, 3), jnp.float32)
    key = jax.random.key(0)
    variables = jax.eval_shape(lambda x: model.init({"params": key, "dropout": key}, x, train=False), image)
    outputs = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, image)
    assert outputs["logits"].shape == (1, 65, 49, info.num_classes)
    make_optimizer(
        config.optimizer.to_dict(),
        variables["params"],
        total_steps=config.train.total_steps,
        clip_norm=config.train.clip_norm,
    )


@pytest.mark.parametrize("name", sorted({name for name, _ in EXPERIMENTS}))
def test_an_unknown_argument_is_answered_with_the_known_ones(name):
    with pytest.raises(ValueError, match="nonsense"):
        load(name, "nonsense")


@pytest.mark.parametrize("path", sorted((REPOSITORY / "experiments").glob("*.py")), ids=lambda path: path.stem)
def test_a_config_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < MAX_LINES


# ml_collections loads the file the old way.
@pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("name", "argument"), EXPERIMENTS)
def test_a_config_is_locked_and_its_keys_can_be_set(name, argument, monkeypatch):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    file = REPOSITORY / "experiments" / f"{name}.py"
    command = ["test", f"--config={file}" + (f":{argument}" if argument else ""), "--config.train.batch_size=3"]
    monkeypatch.setattr(sys, "argv", command)  # where ml_collections looks for overrides
    values(command)
    assert values.config.is_locked and values.config.train.is_locked
    assert values.config.train.batch_size == 3


@pytest.mark.parametrize(("name", "argument"), EXPERIMENTS)
def test_the_keys_that_commands_rely_on_are_there(name, argument):
    config = load(name, argument)
    for key in (
        "seed",
        "model.name",
        "loss",
        "data.name",
        "data.manual_dir",
        "data.data_dir",
        "train.batch_size",
        "train.total_steps",
        "train.log_every_steps",
        "evaluate.every_steps",
        "checkpoint.every_steps",
        "checkpoint.keep",
        "mesh",
    ):
        node = config
        for part in key.split("."):
            assert part in node, key
            node = node[part]


@pytest.mark.parametrize("name", sorted({name for name, _ in EXPERIMENTS}))
def test_an_experiment_names_its_paper_and_command(name):
    docstring = inspect.getdoc(importlib.import_module(f"experiments.{name}"))
    assert "arXiv" in docstring and f"--config=experiments/{name}.py" in docstring
