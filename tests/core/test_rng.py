import jax
import numpy as np

from jaxseg.core.rng import base_key, step_keys


def data(key):
    return np.asarray(jax.random.key_data(key)).tolist()


def test_keys_are_folds_of_step_and_position():
    key = base_key(3)
    keys = step_keys(key, 7, ("dropout", "noise"))
    folded = jax.random.fold_in(jax.random.key(3), 7)
    assert data(keys["dropout"]) == data(jax.random.fold_in(folded, 0))
    assert data(keys["noise"]) == data(jax.random.fold_in(folded, 1))


def test_keys_differ_by_seed_step_and_name_and_never_by_call():
    seen = [
        data(key)
        for seed in (0, 1)
        for step in (0, 1, 2)
        for key in step_keys(base_key(seed), step, ("dropout", "noise")).values()
    ]
    assert len({tuple(key) for key in seen}) == 12
    assert data(step_keys(base_key(0), 1, ("dropout",))["dropout"]) == seen[2]


def test_a_traced_step_gives_the_same_key():
    traced = jax.jit(lambda step: jax.random.key_data(step_keys(base_key(0), step, ("dropout",))["dropout"]))
    assert np.asarray(traced(np.int32(5))).tolist() == data(step_keys(base_key(0), 5, ("dropout",))["dropout"])
