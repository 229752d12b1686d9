"""The loss of a config: terms with their own counts, schedules, and the mistakes that a config can hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import config_dict

from jaxseg.core.errors import JaxsegError, UnknownNameError
from jaxseg.core.mesh import make_mesh
from jaxseg.losses import cross_entropy, focal
from jaxseg.losses.composition import Composition, compose

WEIGHTED = {"cross_entropy": {"class_weights": (0.5, 2.0, 1.0), "normalizer": "class_weights"}}
MIXED = WEIGHTED | {
    "focal": {"weight": 0.5, "normalizer": "images"},
    "bootstrapped_cross_entropy": {"weight": 0.25, "fraction": 0.3},
    "sigmoid_cross_entropy": 2.0,
}
CONFIGS = [{"cross_entropy": 1.0}, {"ce": {"weight": 2.0, "label_smoothing": 0.1}}, WEIGHTED, MIXED]
WHOLE_BATCH = {"ohem_cross_entropy": {"min_kept": 20}, "cross_entropy": 1.0}
SCHEDULE = {"start": 1.0, "end": 0.25, "duration_steps": 30, "every_steps": 10}


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


def test_terms_that_count_differently_add_up():
    logits, labels, where = example()
    loss, terms = compose(MIXED)(logits, labels, where=where)
    assert loss.shape == () and list(terms) == list(MIXED)
    weighted = cross_entropy.build(class_weights=(0.5, 2.0, 1.0), normalizer="class_weights")
    np.testing.assert_allclose(terms["cross_entropy"], weighted.mean(logits, labels, where=where), rtol=1e-6)
    by_image = focal.build(normalizer="images").mean(logits, labels, where=where)
    np.testing.assert_allclose(terms["focal"], by_image, rtol=1e-6)
    weights = {"cross_entropy": 1, "focal": 0.5, "bootstrapped_cross_entropy": 0.25, "sigmoid_cross_entropy": 2}
    np.testing.assert_allclose(loss, sum(weights[n] * float(v) for n, v in terms.items()), rtol=1e-6)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("parts", [[8], [4, 4], [1, 3, 4], [1] * 8])
def test_a_batch_split_in_any_way(config, parts):
    logits, labels, where = example()
    loss = compose(config)
    assert not loss.whole_batch
    whole, terms = loss(logits, labels, where=where)
    divisors = loss.divisors(labels, where=where, num_classes=3)
    pieces, start = [], 0
    for rows in parts:
        part = slice(start, start + rows)
        pieces.append(loss(logits[part], labels[part], where=where[part], divisors=divisors))
        start += rows
    np.testing.assert_allclose(sum(float(value) for value, _ in pieces), whole, rtol=2e-6)
    for name in terms:
        np.testing.assert_allclose(sum(float(piece[name]) for _, piece in pieces), terms[name], rtol=2e-6)


@pytest.mark.parametrize("config", [*CONFIGS, WHOLE_BATCH])
def test_four_devices_equal_one(config):
    logits, labels, where = example()
    function = jax.jit(jax.value_and_grad(lambda x, y, w: compose(config)(x, y, where=w), has_aux=True))
    (whole, terms), gradient = function(logits, labels, where)
    rows = NamedSharding(make_mesh(), PartitionSpec("data"))
    (sharded, sharded_terms), sharded_gradient = function(*jax.device_put((logits, labels, where), rows))
    np.testing.assert_allclose(sharded, whole, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), sharded_terms, terms)
    np.testing.assert_allclose(sharded_gradient, gradient, atol=1e-7)


def test_one_term_that_needs_the_whole_batch_makes_the_composition_need_it():
    assert compose(WHOLE_BATCH).whole_batch


@pytest.mark.parametrize("config", CONFIGS)
def test_all_void_is_zero_with_zero_gradients(config):
    logits, labels, where = example(void_rows=range(8))
    (total, terms), gradient = jax.value_and_grad(lambda x: compose(config)(x, labels, where=where), has_aux=True)(
        jnp.asarray(logits)
    )
    assert float(total) == 0 and not any(float(v) for v in terms.values())
    np.testing.assert_array_equal(gradient, np.zeros_like(logits))


def test_weights_multiply_and_options_arrive():
    logits, labels, where = example()
    one, terms = compose({"cross_entropy": 1.0})(logits, labels, where=where)
    three, same = compose({"cross_entropy": {"weight": 3}})(logits, labels, where=where)
    np.testing.assert_allclose(three, 3 * float(one), rtol=1e-6)
    assert float(terms["cross_entropy"]) == float(same["cross_entropy"]) == float(one)  # before weighting
    smoothed, _ = compose({"cross_entropy": {"label_smoothing": 0.5}})(logits, labels, where=where)
    direct = cross_entropy.cross_entropy(logits, labels, where=where, label_smoothing=0.5)
    np.testing.assert_allclose(smoothed, float(np.sum(direct)) / where.sum(), rtol=1e-6)


def test_a_term_without_weight_is_left_out():
    composition = compose({"cross_entropy": 1.0, "focal": 0.0, "ohem_cross_entropy": {"weight": 0}})
    assert isinstance(composition, Composition) and list(composition.terms) == ["cross_entropy"]


@pytest.mark.parametrize(
    ("step", "weight"), [(0, 1.0), (9, 1.0), (10, 0.75), (19, 0.75), (20, 0.5), (30, 0.25), (10_000, 0.25)]
)
def test_a_schedule_moves_every_so_many_steps(step, weight):
    logits, labels, where = example()
    loss, terms = jax.jit(lambda s: compose({"focal": {"weight": SCHEDULE}})(logits, labels, where=where, step=s))(step)
    np.testing.assert_allclose(loss, weight * float(terms["focal"]), rtol=1e-6)


def test_a_schedule_may_start_at_zero():
    """Kervadec's boundary loss comes in from 0; such a term must not be taken for one that is switched off."""
    logits, labels, where = example()
    ramp = {"start": 0.0, "end": 1.0, "duration_steps": 4}
    composition = compose({"ce": 1.0, "focal": {"weight": ramp}})
    losses = [float(composition(logits, labels, where=where, step=s)[0]) for s in range(3)]
    terms = composition(logits, labels, where=where)[1]
    assert losses[0] == pytest.approx(float(terms["ce"]), rel=1e-6)
    assert losses[2] == pytest.approx(float(terms["ce"]) + 0.5 * float(terms["focal"]), rel=1e-6)


def test_config_dict_is_taken():
    entry = {"weight": {"start": 2.0, "end": 2.0, "duration_steps": 1}, "class_weights": (1.0, 1.0, 1.0)}
    config = config_dict.ConfigDict({"cross_entropy": entry})
    logits, labels, where = example()
    plain, _ = compose({"cross_entropy": 1.0})(logits, labels, where=where)
    for taken in (config, config.to_dict()):
        np.testing.assert_allclose(compose(taken)(logits, labels, where=where)[0], 2 * float(plain), rtol=1e-6)


OWN = """
from jaxseg.losses.reduction import Loss, pixel_counts

def build(*, power=1.0):
    return Loss(lambda logits, labels, *, where: where.astype("float32") * power, pixel_counts(normalizer="images"))
"""


def test_a_users_own_package(monkeypatch, tmp_path):
    user_package(monkeypatch, tmp_path, "adding", OWN)
    logits, labels, where = example()
    config = {"cross_entropy": 1.0, "adding.loss": {"weight": 0.5, "power": 4.0}}
    total, terms = compose(config)(logits, labels, where=where)
    np.testing.assert_allclose(terms["adding.loss"], 4 * where.sum() / 8, rtol=1e-6)
    np.testing.assert_allclose(total, float(terms["cross_entropy"]) + 0.5 * 4 * where.sum() / 8, rtol=1e-6)


def test_a_users_package_that_builds_something_else(monkeypatch, tmp_path):
    user_package(monkeypatch, tmp_path, "wrong", "def build():\n    return lambda logits, labels, *, where: 0.0\n")
    with pytest.raises(JaxsegError, match="wrong.loss: build.. returns a function, not a Loss"):
        compose({"wrong.loss": 1.0})


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        ({}, JaxsegError, "no term"),
        ({"cross_entropy": 0.0}, JaxsegError, "no term"),
        ({"cros_entropy": 1.0}, UnknownNameError, "Did you mean cross_entropy"),
        ({"cross_entropy": {"label_smothing": 0.1}}, UnknownNameError, "Did you mean label_smoothing"),
        ({"cross_entropy": -1.0}, JaxsegError, "config.loss.cross_entropy"),
        ({"cross_entropy": {"weight": "1"}}, JaxsegError, "'1'"),
        ({"cross_entropy": True}, JaxsegError, "True"),
        ({"cross_entropy": float("nan")}, JaxsegError, "nan"),
        ({"ce": {"weight": {"start": 1.0, "ende": 0.0}}}, JaxsegError, "weight.ende.*Did you mean end"),
        ({"ce": {"weight": {"start": 1.0, "end": 0.0}}}, JaxsegError, "without duration_steps"),
        ({"ce": {"weight": SCHEDULE | {"duration_steps": 0}}}, JaxsegError, "duration_steps is 0"),
        ({"ce": {"weight": SCHEDULE | {"end": -1.0}}}, JaxsegError, "weight.end is -1"),
        ({"ce": {"weight": SCHEDULE | {"every_steps": 0}}}, JaxsegError, "every_steps is 0"),
    ],
)
def test_bad_configs(config, error, says):
    with pytest.raises(error, match=says):
        compose(config)
