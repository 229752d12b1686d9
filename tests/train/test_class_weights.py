"""Class weights by file: read as written, and every mistake a sentence."""

import json

import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.core.types import DatasetInfo
from jaxseg.losses.composition import compose
from jaxseg.train.class_weights import read_class_weights

INFO = DatasetInfo("toy", ("sky", "road"), ((0, 0, 0), (1, 1, 1)), void=255)
GOOD = {"classes": ["sky", "road"], "class_weights": [0.5, 2]}


def test_the_path_becomes_the_weights(tmp_path):
    path = tmp_path / "weights.json"
    path.write_text(json.dumps(GOOD))
    config = {"cross_entropy": {"weight": 2.0, "class_weights": str(path)}, "focal": {"class_weights": (1.0, 1.0)}}
    found = read_class_weights(config | {"poly": 1.0}, INFO)
    assert found == {
        "cross_entropy": {"weight": 2.0, "class_weights": (0.5, 2.0)},
        "focal": {"class_weights": (1.0, 1.0)},
        "poly": 1.0,
    }
    assert config["cross_entropy"]["class_weights"] == str(path)
    compose(found)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        ("[0.5, 2]", "holds no `classes`"),
        (json.dumps({"class_weights": [1, 2]}), "holds no `classes`"),
        (json.dumps(GOOD | {"classes": ["road", "sky"]}), "other classes, .'road', 'sky'.; those of toy"),
        (json.dumps(GOOD | {"class_weights": [1]}), "one finite number"),
        (json.dumps(GOOD | {"class_weights": [1, -1]}), "one finite number"),
        (json.dumps(GOOD | {"class_weights": [1, float("nan")]}), "one finite number"),
        (json.dumps(GOOD | {"class_weights": 1.0}), "one finite number"),
    ],
)
def test_a_bad_file_gets_a_sentence(tmp_path, content, says):
    (tmp_path / "w.json").write_text(content)
    with pytest.raises(JaxsegError, match=r"config\.loss\.ce\.class_weights = .*" + says):
        read_class_weights({"ce": {"class_weights": str(tmp_path / "w.json")}}, INFO)


def test_a_missing_file_lists_the_near_ones(tmp_path):
    (tmp_path / "weights.json").write_text(json.dumps(GOOD))
    with pytest.raises(JaxsegError, match="no such file. Did you mean .*weights.json"):
        read_class_weights({"ce": {"class_weights": str(tmp_path / "wieghts.json")}}, INFO)
    with pytest.raises(JaxsegError, match="no such file"):
        read_class_weights({"ce": {"class_weights": str(tmp_path / "none" / "w.json")}}, INFO)
    with pytest.raises(JaxsegError, match="cannot be read"):
        read_class_weights({"ce": {"class_weights": str(tmp_path)}}, INFO)
