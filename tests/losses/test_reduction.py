"""Sums, counts and composition: a batch split in any way gives the same number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import config_dict

from jaxseg.core.errors import JaxsegError, UnknownNameError
from jaxseg.core.mesh import make_mesh
from jaxseg.losses.cross_entropy import cross_entropy
from jaxseg.losses.reduction import compose, sum_and_count

WEIGHTED = {"cross_entropy": {"class_weights": (0.5, 2.0, 1.0), "normalizer": "class_weights"}}
CONFIGS = [{"cross_entropy": 1.0}, {"cross_entropy": {"weight": 2.0, "label_smoothing": 0.1}}, WEIGHTED]


def example(rows=8, void_rows=(3,)):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, (rows, 5, 6)).astype(np.int32)
    labels[rng.random(labels.shape) < 0.3] = 255
    labels[list(void_rows)] = 255
    return rng.normal(size=(rows, 5, 6, 3)).astype(np.float32), labels, labels < 3


def user_package(monkeypatch, tmp_path, name, source):
    """Makes `name.loss` importable."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "loss.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)


def test_sum_and_count_by_hand():
    values = np.asarray([[1.0, 2.0], [4.0, np.nan]], np.float32)
    where = np.asarray([[True, False], [True, False]])
    assert [float(x) for x in sum_and_count(values, where)] == [5.0, 2.0]
    weights = np.asarray([[0.5, 7.0], [3.0, np.nan]], np.float32)
    assert [float(x) for x in sum_and_count(values, where, pixel_weights=weights)] == [5.0, 3.5]


def test_count_passes_2_to_the_24():
    # A float32 that is counted up by ones stops at 16777216.
    where = np.ones((1 << 24) + 4, bool)
    _, count = jax.jit(sum_and_count)(np.zeros(where.shape, np.float32), where)
    assert float(count) == (1 << 24) + 4


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("parts", [[8], [4, 4], [1, 3, 4], [1] * 8])
def test_a_batch_split_in_any_way(config, parts):
    logits, labels, where = example()
    loss = compose(config)
    whole, count = loss(logits, labels, where=where)
    pieces, start = [], 0
    for rows in parts:
        part = slice(start, start + rows)
        pieces.append(loss(logits[part], labels[part], where=where[part]))
        start += rows
    assert float(sum(c for _, c in pieces)) == float(count)
    np.testing.assert_allclose(sum(s for s, _ in pieces), whole, rtol=1e-6)


@pytest.mark.parametrize("config", CONFIGS)
def test_four_devices_equal_one(config):
    logits, labels, where = example()
    function = jax.jit(jax.value_and_grad(lambda x, y, w: compose(config)(x, y, where=w), has_aux=True))
    (whole, count), gradient = function(logits, labels, where)
    rows = NamedSharding(make_mesh(), PartitionSpec("data"))
    (sharded, sharded_count), sharded_gradient = function(*jax.device_put((logits, labels, where), rows))
    assert float(count) == float(sharded_count)
    np.testing.assert_allclose(sharded, whole, rtol=1e-6)
    np.testing.assert_allclose(sharded_gradient, gradient, atol=1e-7)


@pytest.mark.parametrize("config", CONFIGS)
def test_all_void_is_zero_with_zero_gradients(config):
    logits, labels, where = example(void_rows=range(8))
    (total, count), gradient = jax.value_and_grad(lambda x: compose(config)(x, labels, where=where), has_aux=True)(
        jnp.asarray(logits)
    )
    assert float(total) == 0 and float(count) == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(logits))


def test_weights_multiply_and_options_arrive():
    logits, labels, where = example()
    one, count = compose({"cross_entropy": 1.0})(logits, labels, where=where)
    three, same = compose({"cross_entropy": {"weight": 3}})(logits, labels, where=where)
    np.testing.assert_allclose(three, 3 * float(one), rtol=1e-6)
    assert float(count) == float(same) == where.sum()
    smoothed, _ = compose({"cross_entropy": {"label_smoothing": 0.5}})(logits, labels, where=where)
    direct = cross_entropy(logits, labels, where=where, label_smoothing=0.5)
    np.testing.assert_allclose(smoothed, np.sum(direct), rtol=1e-6)
    assert abs(float(smoothed) - float(one)) > 0.01


def test_config_dict_is_taken():
    config = config_dict.ConfigDict({"cross_entropy": {"weight": 2.0, "class_weights": (1.0, 1.0, 1.0)}})
    logits, labels, where = example()
    total, _ = compose(config)(logits, labels, where=where)
    np.testing.assert_allclose(total, 2 * compose({"cross_entropy": 1.0})(logits, labels, where=where)[0], rtol=1e-6)


def test_terms_add_up_and_take_a_users_own_package(monkeypatch, tmp_path):
    source = "def build(*, power=1.0):\n    return lambda logits, labels, *, where: where.astype('float32') * power\n"
    user_package(monkeypatch, tmp_path, "adding", source)
    logits, labels, where = example()
    total, count = compose({"cross_entropy": 1.0, "adding.loss": {"weight": 0.5, "power": 4.0}})(
        logits, labels, where=where
    )
    single, _ = compose({"cross_entropy": 1.0})(logits, labels, where=where)
    np.testing.assert_allclose(total, float(single) + 2 * where.sum(), rtol=1e-6)
    assert float(count) == where.sum()


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        ({}, JaxsegError, "no term"),
        ({"cross_entropy": 0.0}, JaxsegError, "no term"),
        ({"cros_entropy": 1.0}, UnknownNameError, "Did you mean cross_entropy"),
        ({"cross_entropy": {"label_smothing": 0.1}}, UnknownNameError, "Did you mean label_smoothing"),
        ({"cross_entropy": -1.0}, JaxsegError, "config.loss.cross_entropy"),
        ({"cross_entropy": {"weight": "1"}}, JaxsegError, "'1'"),
        ({"cross_entropy": float("nan")}, JaxsegError, "nan"),
    ],
)
def test_bad_configs(config, error, says):
    with pytest.raises(error, match=says):
        compose(config)


def test_terms_that_count_differently_are_refused(monkeypatch, tmp_path):
    user_package(
        monkeypatch, tmp_path, "zero", "def build():\n    return lambda logits, labels, *, where: 0.0 * where\n"
    )
    with pytest.raises(JaxsegError, match="zero.loss.*valid_pixels"):
        compose(WEIGHTED | {"zero.loss": 1.0})


def test_shapes_that_differ_raise():
    with pytest.raises(ValueError, match="differ"):
        sum_and_count(np.zeros((2, 3), np.float32), np.ones((3, 2), bool))
    with pytest.raises(ValueError, match="differ"):
        sum_and_count(np.zeros(3, np.float32), np.ones(3, bool), pixel_weights=np.ones(1, np.float32))
