"""Whose work directory it is."""

import json

import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.train.workdir import claim, flatten, read_config

CONFIG = {"seed": 0, "train": {"total_steps": 10, "log_every_steps": 1}, "data": {"crop_size_px": (4, 5), "workers": 2}}


def changed(**flat):
    config = json.loads(json.dumps(CONFIG))
    for key, value in flat.items():
        section, _, name = key.partition("__")
        if name:
            config[section][name] = value
        else:
            config[section] = value
    return config


def test_flatten_joins_keys_by_dots():
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": {}}) == {"a.b": 1, "a.c.d": 2, "e": {}}


def test_the_first_claim_records_config_and_versions(tmp_path):
    claim(tmp_path / "run", CONFIG)
    assert read_config(tmp_path / "run") == json.loads(json.dumps(CONFIG))
    made_with = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert made_with["jax"].count(".") == 2 and "cores" in made_with["machine"] and made_with["command"]


def test_the_same_config_and_harmless_changes_go_on(tmp_path):
    claim(tmp_path, CONFIG)
    claim(tmp_path, CONFIG)
    claim(tmp_path, changed(train__log_every_steps=7, data__workers=0))
    assert read_config(tmp_path)["train"]["log_every_steps"] == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "config.seed: 0 there, 1 now"),
        ({"train__total_steps": 11}, "config.train.total_steps: 10 there, 11 now"),
        ({"data__crop_size_px": [4, 6]}, r"config.data.crop_size_px: \[4, 5\] there, \[4, 6\] now"),
        ({"train__new": True}, "config.train.new: 'absent' there, True now"),
    ],
)
def test_another_config_is_refused_with_what_differs(tmp_path, change, words):
    claim(tmp_path, CONFIG)
    with pytest.raises(JaxsegError, match=words):
        claim(tmp_path, changed(**change))


def test_a_folder_that_is_no_work_directory_or_is_torn(tmp_path):
    with pytest.raises(JaxsegError, match="not a work directory"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(JaxsegError, match="not valid JSON"):
        read_config(tmp_path)
