"""The logits that PyTorch's networks gave for the same weights, stored: the comparison needs no PyTorch."""

import jax
import numpy as np
import pytest

from tests.goldens.networks import FILE, NETWORKS, image_of, module_of, sample, variables_of


@pytest.fixture(scope="module")
def stored():
    with np.load(FILE) as file:
        return dict(file)


def test_every_golden_has_its_network(stored):
    assert set(stored) == set(NETWORKS) and FILE.stat().st_size < 400_000


@pytest.mark.parametrize("name", NETWORKS)
def test_logits(name, stored):
    module, expected = module_of(name), stored[name]
    forward = jax.jit(lambda v, x: module.apply(v, x, False)["logits"])
    ours = sample(forward(variables_of(module), image_of(name)))
    assert ours.shape == expected.shape and expected.std((1, 2)).max() > 0.01 * np.abs(expected).max()
    assert np.max(np.abs(ours - expected)) < 1e-4 * np.max(np.abs(expected))
