"""Connected components against SciPy's, whose order of numbers is the same."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxseg.core.mesh import make_mesh
from jaxseg.ops.connected_components import connected_components

ndimage = pytest.importorskip("scipy.ndimage")
STRUCTURES = {4: ndimage.generate_binary_structure(2, 1), 8: np.ones((3, 3))}
each_connectivity = pytest.mark.parametrize("connectivity", [4, 8])


def scipy_label(mask, connectivity):
    return ndimage.label(mask, structure=STRUCTURES[connectivity])[0]


def spiral(size):
    """One arm of a pixel's width, with a pixel between its turns."""
    mask = np.zeros((size, size), bool)
    y = x = 0
    dy, dx = 0, 1
    mask[0, 0] = True
    while True:
        steps = 0
        while True:
            v, u = y + dy, x + dx
            a, b = v + dy, u + dx
            free = 0 <= v < size and 0 <= u < size and not mask[v, u]
            if not free or (0 <= a < size and 0 <= b < size and mask[a, b]):
                break
            y, x, steps = v, u, steps + 1
            mask[y, x] = True
        if not steps:
            return mask
        dy, dx = dx, -dy


def serpentine(h, w):
    mask = np.zeros((h, w), bool)
    mask[::2] = True
    mask[1::4, -1] = True
    mask[3::4, 0] = True
    return mask


@each_connectivity
@pytest.mark.parametrize("shape", [(1, 1), (1, 12), (12, 1), (9, 14), (31, 30)])
@pytest.mark.parametrize("density", [0.3, 0.55, 0.65, 1.0])
def test_scipy(connectivity, shape, density):
    masks = np.random.default_rng(0).random((4, *shape)) < density
    masks[3] = False
    result = jax.jit(lambda m: connected_components(m, connectivity=connectivity))(masks)
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result, np.stack([scipy_label(m, connectivity) for m in masks]))


@each_connectivity
@pytest.mark.parametrize("turns", range(4))
def test_spirals_and_serpentines(connectivity, turns):
    masks = np.stack([spiral(33), serpentine(33, 33), ~spiral(33)])
    masks = np.rot90(masks, turns, axes=(1, 2))
    assert scipy_label(masks[0], 4).max() == scipy_label(masks[1], 4).max() == 1
    expected = np.stack([scipy_label(m, connectivity) for m in masks])
    np.testing.assert_array_equal(connected_components(masks, connectivity=connectivity), expected)


@each_connectivity
def test_label_map(connectivity):
    """Every label's regions, each label on its own, and void that connects nothing."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, (2, 17, 15)).astype(np.uint8)
    where = rng.random(labels.shape) < 0.9
    result = np.asarray(connected_components(np.where(where, labels, 255), connectivity=connectivity, where=where))
    for i in range(2):
        assert np.array_equal(result[i] > 0, where[i])
        for c in range(3):
            mask = (labels[i] == c) & where[i]
            expected = scipy_label(mask, connectivity)
            pairs = set(zip(expected[mask].tolist(), result[i][mask].tolist(), strict=True))
            assert len(pairs) == expected.max() == len({b for _, b in pairs})
        numbers, firsts = np.unique(result[i], return_index=True)
        assert np.array_equal(numbers[numbers > 0], np.arange(1, result[i].max() + 1))
        assert np.all(np.diff(firsts[numbers > 0]) > 0)


def test_leading_dimensions_vmap_and_devices():
    masks = np.random.default_rng(2).random((4, 2, 9, 11)) < 0.6
    expected = np.stack([[scipy_label(m, 4) for m in pair] for pair in masks])
    np.testing.assert_array_equal(connected_components(masks), expected)
    np.testing.assert_array_equal(jax.vmap(connected_components)(masks), expected)
    np.testing.assert_array_equal(connected_components(masks[1, 0]), expected[1, 0])
    rows = NamedSharding(make_mesh(devices=jax.devices()[:2]), PartitionSpec("data"))
    np.testing.assert_array_equal(jax.jit(connected_components)(jax.device_put(masks, rows)), expected)
    assert connected_components(np.zeros((2, 0, 3), bool)).shape == (2, 0, 3)


@pytest.mark.parametrize(
    ("labels", "options", "error", "says"),
    [
        (np.zeros((3, 3), np.float32), {}, TypeError, "integers"),
        (np.zeros(3, bool), {}, ValueError, "rows and columns"),
        (np.zeros((3, 3), bool), {"connectivity": 6}, ValueError, "4 or 8"),
        (np.zeros((3, 3), bool), {"where": np.ones((3, 3), np.int32)}, TypeError, "bool"),
        (np.zeros((3, 3), bool), {"where": np.ones((3, 2), bool)}, ValueError, "differ"),
    ],
)
def test_bad_input(labels, options, error, says):
    with pytest.raises(error, match=says):
        connected_components(labels, **options)
