"""The two nearest labels against one SciPy distance transform an object."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxseg.core.mesh import make_mesh
from jaxseg.ops.distance_transform import NO_TARGET
from jaxseg.ops.nearest_labels import two_nearest_labels


def two_nearest_numpy(labels):
    """Every object's squared distance, sorted."""
    ids = [i for i in np.unique(labels) if i > 0]
    maps = []
    for i in ids:
        rows, columns = np.nonzero(labels == i)
        y, x = np.indices(labels.shape)
        maps.append(((y[..., None] - rows) ** 2 + (x[..., None] - columns) ** 2).min(-1))
    maps = np.stack([*maps, *[np.full(labels.shape, NO_TARGET)] * 2])
    return np.sort(maps, axis=0)[:2], dict(zip(ids, maps, strict=False))


def check(labels, result):
    """Both distances, and that each label has its distance and the two differ."""
    d1, l1, d2, l2 = (np.asarray(a) for a in result)
    for at in np.ndindex(labels.shape[:-2]):
        (first, second), by_label = two_nearest_numpy(labels[at])
        np.testing.assert_array_equal(d1[at], first)
        np.testing.assert_array_equal(d2[at], second)
        for distance, label in ((d1[at], l1[at]), (d2[at], l2[at])):
            np.testing.assert_array_equal(label == 0, distance == NO_TARGET)
            for i, own in by_label.items():
                np.testing.assert_array_equal(own[label == i], distance[label == i])
        assert not np.any((l1[at] == l2[at]) & (l1[at] > 0))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (12, 17), (20, 7)])
@pytest.mark.parametrize("density", [0.02, 0.2, 0.9])
def test_every_object_on_its_own(shape, density):
    """Scattered objects of up to five labels; images without one and with one alone are in the batch."""
    rng = np.random.default_rng(0)
    labels = rng.integers(1, 6, (6, *shape)) * (rng.random((6, *shape)) < density)
    labels[0] = 0
    labels[1] = np.minimum(labels[1], 1) * 9
    labels = labels.astype(np.int32)
    check(labels, jax.jit(two_nearest_labels)(labels))


def test_many_objects():
    kept = np.random.default_rng(1).random((15, 14)) < 0.3
    labels = np.arange(1, 1 + 15 * 14, dtype=np.int16).reshape(15, 14) * kept
    check(labels, two_nearest_labels(labels))


@pytest.mark.parametrize("within", [0.5, 1.0, 3.0, 4.5])
def test_within(within):
    rng = np.random.default_rng(2)
    labels = (rng.integers(1, 5, (3, 25, 14)) * (rng.random((3, 25, 14)) < 0.02)).astype(np.int32)
    found, exact = two_nearest_labels(labels, within=within), two_nearest_labels(labels)
    for i in (0, 2):
        near = np.asarray(exact[i]) <= within**2
        np.testing.assert_array_equal(np.asarray(found[i])[near], np.asarray(exact[i])[near])
        assert np.all(np.asarray(found[i])[~near] > within**2) and np.all(np.asarray(found[i]) >= np.asarray(exact[i]))


def test_docstring():
    d1, l1, d2, l2 = two_nearest_labels(np.asarray([[5, 0, 0, 7]]))
    np.testing.assert_array_equal(np.concatenate([d1, d2]), [[0, 1, 1, 0], [9, 4, 4, 9]])
    np.testing.assert_array_equal(np.concatenate([l1, l2]), [[5, 5, 7, 7], [7, 7, 5, 5]])


def test_vmap_and_devices():
    rng = np.random.default_rng(3)
    labels = (rng.integers(1, 5, (4, 2, 9, 8)) * (rng.random((4, 2, 9, 8)) < 0.1)).astype(np.int32)
    check(labels, two_nearest_labels(labels))
    check(labels, jax.vmap(two_nearest_labels)(labels))
    rows = NamedSharding(make_mesh(devices=jax.devices()[:2]), PartitionSpec("data"))
    check(labels, jax.jit(two_nearest_labels)(jax.device_put(labels, rows)))


@pytest.mark.parametrize(
    ("labels", "options", "error", "says"),
    [
        (np.zeros((3, 3), np.float32), {}, TypeError, "integers"),
        (np.zeros(3, np.int32), {}, ValueError, "rows and columns"),
        (np.zeros((3, 3), np.int32), {"within": 0.0}, ValueError, "above 0"),
        (jax.ShapeDtypeStruct((40_000, 1), np.int32), {}, ValueError, "too large"),
    ],
)
def test_bad_input(labels, options, error, says):
    with pytest.raises(error, match=says):
        jax.eval_shape(lambda x: two_nearest_labels(x, **options), labels)
