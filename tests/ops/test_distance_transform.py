"""Both ways of the distance transform against brute force, SciPy and hand values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxseg.core.mesh import make_mesh
from jaxseg.ops import distance_transform as module
from jaxseg.ops.distance_transform import NO_TARGET, distance_transform, squared_distance

ndimage = pytest.importorskip("scipy.ndimage")
WAYS = {"envelope": module._by_envelope, "offsets": module._by_offsets}
each_way = pytest.mark.parametrize("way", WAYS)


def compute(way, targets, spacing=None):
    step, across = module._checked_spacing(spacing)
    return np.asarray(jax.jit(lambda t: WAYS[way](t, step, across))(jnp.asarray(targets)))


def brute_force(targets, spacing=(1, 1)):
    """A pixel at a time, float64; inf without targets."""
    rows, columns = np.nonzero(targets)
    result = np.full(targets.shape, np.inf)
    for y, x in np.ndindex(targets.shape):
        if rows.size:
            result[y, x] = (((rows - y) * spacing[0]) ** 2 + ((columns - x) * spacing[1]) ** 2).min()
    return result


def expected_int(targets):
    return np.stack([np.where(np.isinf(b := brute_force(t)), NO_TARGET, b) for t in targets]).astype(np.int32)


@each_way
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 3), (7, 12), (16, 16), (21, 10)])
@pytest.mark.parametrize("density", [0.02, 0.2, 0.7])
def test_brute_force(way, shape, density):
    """Each batch holds an image without a target, one with a single one, and one of targets alone."""
    rng = np.random.default_rng(0)
    targets = rng.random((6, *shape)) < density
    targets[0] = False
    targets[1] = True
    targets[2] = False
    targets[2, rng.integers(shape[0]), rng.integers(shape[1])] = True
    result = compute(way, targets)
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result, expected_int(targets))


@each_way
def test_every_small_image(way):
    """All 2^12 images of 4 x 3 pixels."""
    targets = ((np.arange(2**12)[:, None] >> np.arange(12)) & 1).astype(bool).reshape(-1, 4, 3)
    np.testing.assert_array_equal(compute(way, targets), expected_int(targets))


@each_way
@pytest.mark.parametrize("density", [0.0005, 0.01, 0.5, 0.995])
def test_scipy(way, density):
    targets = np.random.default_rng(1).random((2, 97, 64)) < density
    targets[:, 96, 0] = True
    expected = np.stack([np.rint(ndimage.distance_transform_edt(~t) ** 2) for t in targets]).astype(np.int32)
    np.testing.assert_array_equal(compute(way, targets), expected)


@each_way
@pytest.mark.parametrize("shape", [(10_000, 3), (3, 10_000)])
@pytest.mark.parametrize("corner", [(0, 0), (-1, -1), (0, -1)])
def test_large_distances_do_not_overflow(way, shape, corner):
    targets = np.zeros((1, *shape), bool)
    targets[0][corner] = True
    np.testing.assert_array_equal(compute(way, targets), expected_int(targets))


@each_way
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0), (3.3, 0.7)])
def test_spacing(way, spacing):
    targets = np.random.default_rng(2).random((3, 23, 31)) < 0.03
    targets[2] = False
    expected = np.stack([brute_force(t, spacing) for t in targets])
    result = compute(way, targets, spacing)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    sampled = np.stack([ndimage.distance_transform_edt(~t, sampling=spacing) for t in targets[:2]])
    np.testing.assert_allclose(np.sqrt(result[:2]), sampled, rtol=1e-6)


@each_way
@pytest.mark.parametrize("shape", [(8000, 2), (2, 8000)])
def test_spacing_far_from_the_origin(way, shape):
    """Where parabolas cross is found within rounding, however large the coordinates are."""
    targets = np.random.default_rng(3).random((1, *shape)) < 0.002
    expected = ndimage.distance_transform_edt(~targets[0], sampling=(0.3, 1.7)) ** 2
    np.testing.assert_allclose(compute(way, targets, (0.3, 1.7))[0], expected, rtol=2e-6)


def test_corner_of_the_docstring():
    targets = np.zeros((3, 3), bool)
    targets[0, 0] = True
    np.testing.assert_array_equal(squared_distance(targets), [[0, 1, 4], [1, 2, 5], [4, 5, 8]])


def test_distance_transform_is_scipy_and_inf_without_background():
    foreground = np.random.default_rng(4).random((2, 3, 19, 14)) < 0.9
    foreground[1, 2] = True
    result = np.asarray(distance_transform(foreground))
    assert result.dtype == np.float32 and np.all(np.isinf(result[1, 2]))
    for at in np.ndindex(2, 3):
        if at != (1, 2):
            np.testing.assert_allclose(result[at], ndimage.distance_transform_edt(foreground[at]), rtol=1e-6)
    np.testing.assert_array_equal(distance_transform(np.asarray([[True, True, True, False]])), [[3, 2, 1, 0]])
    assert np.all(np.isinf(distance_transform(np.ones((2, 2), bool), spacing=(1.0, 2.0))))


@pytest.mark.parametrize("spacing", [None, (2.0, 0.5)])
def test_eager_vmap_leading_dimensions_and_devices(spacing):
    targets = np.random.default_rng(5).random((4, 2, 11, 8)) < 0.05
    expected = np.stack([compute("offsets", t, spacing) for t in targets])
    function = lambda t: squared_distance(t, spacing=spacing)  # noqa: E731
    np.testing.assert_allclose(function(targets), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(function)(targets), expected, rtol=1e-6)
    np.testing.assert_allclose(function(targets[1, 0]), expected[1, 0], rtol=1e-6)
    rows = NamedSharding(make_mesh(devices=jax.devices()[:2]), PartitionSpec("data"))
    np.testing.assert_allclose(jax.jit(function)(jax.device_put(targets, rows)), expected, rtol=1e-6)
    for way in WAYS.values():
        mapped = jax.vmap(lambda t, way=way: way(t, *module._checked_spacing(spacing)))(targets)
        np.testing.assert_allclose(mapped, expected, rtol=1e-6)


def test_no_pixels():
    assert squared_distance(np.zeros((0, 4, 4), bool)).shape == (0, 4, 4)
    assert squared_distance(np.zeros((2, 0, 4), bool)).dtype == jnp.int32


@pytest.mark.parametrize(
    ("targets", "options", "error", "says"),
    [
        (np.zeros((3, 3), np.int32), {}, TypeError, "bool"),
        (np.zeros(3, bool), {}, ValueError, "rows and columns"),
        (np.zeros((3, 3), bool), {"spacing": (1.0,)}, ValueError, "two positive"),
        (np.zeros((3, 3), bool), {"spacing": (1.0, 0.0)}, ValueError, "two positive"),
        (jax.ShapeDtypeStruct((40_000, 1), bool), {}, ValueError, "too large"),
    ],
)
def test_bad_input(targets, options, error, says):
    with pytest.raises(error, match=says):
        jax.eval_shape(lambda t: squared_distance(t, **options), targets)
