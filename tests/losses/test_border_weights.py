"""U-Net's border weights against hand values, one distance transform an object, and real images."""

import jax
import numpy as np
import pytest
from PIL import Image

from jaxseg.core.errors import JaxsegError, UnknownNameError
from jaxseg.losses import cross_entropy as module
from jaxseg.losses.border_weights import border_weights, class_map_border_weights
from jaxseg.losses.cross_entropy import cross_entropy
from jaxseg.ops.connected_components import connected_components

ndimage = pytest.importorskip("scipy.ndimage")


def border_weights_scipy(instances, w0=10.0, sigma=5.0):
    """One distance transform an object, float64."""
    ids = [i for i in np.unique(instances) if i > 0]
    if len(ids) < 2:
        return np.zeros(instances.shape)
    distances = np.sort([ndimage.distance_transform_edt(instances != i) for i in ids], axis=0)[:2]
    return w0 * np.exp(-(distances.sum(0) ** 2) / (2 * sigma**2))


@pytest.mark.parametrize(("d", "weight"), [(1, 9.23116), (2, 7.26149), (3, 4.86752), (5, 1.35335)])
def test_paper_values_midway_between_two_objects(d, weight):
    instances = np.zeros((1, 2 * d + 1), np.int32)
    instances[0, 0], instances[0, -1] = 3, 8
    np.testing.assert_allclose(border_weights(instances)[0, d], weight, atol=5e-6)


def test_touching_objects_and_fewer_than_two():
    # d1 = 0 inside; d2 = 1 at the seam.
    weights = border_weights(np.asarray([[1, 1, 2, 2]]))
    np.testing.assert_allclose(weights[0], 10 * np.exp(-np.asarray([4, 1, 1, 4]) / 50), rtol=1e-6)
    assert not np.any(border_weights(np.asarray([[1, 1, 0, 0]])))
    assert not np.any(border_weights(np.zeros((2, 3, 4), np.int32)))
    np.testing.assert_array_equal(border_weights(np.asarray([[1, 1, 2, 2]]), background_only=True), np.zeros((1, 4)))


@pytest.mark.parametrize("options", [{}, {"w0": 3.0, "sigma": 0.4}, {"sigma": 30.0}])
def test_scipy(options):
    rng = np.random.default_rng(0)
    instances = (rng.integers(1, 7, (4, 40, 23)) * (rng.random((4, 40, 23)) < 0.01)).astype(np.int32)
    instances[3] = 0
    expected = np.stack([border_weights_scipy(i, **options) for i in instances])
    result = jax.jit(lambda i: border_weights(i, **options))(instances)
    np.testing.assert_allclose(result, expected, rtol=3e-5, atol=1e-6)
    outside = border_weights(instances, background_only=True, **options)
    np.testing.assert_allclose(outside, np.where(instances > 0, 0, expected), rtol=3e-5, atol=1e-6)


def test_void_holds_no_object():
    instances = np.asarray([[1, 0, 0, 2, 0, 3]])
    where = instances != 2
    expected = np.where(where, border_weights_scipy(np.where(where, instances, 0)), 0)
    np.testing.assert_allclose(border_weights(instances, where=where), expected, rtol=1e-5)


def test_objects_of_a_class_map():
    labels = np.asarray([[1, 0, 1, 0, 2, 2], [1, 0, 0, 1, 2, 9]])
    where = labels < 9
    for connectivity, instances in (
        (4, [[1, 0, 2, 0, 4, 4], [1, 0, 0, 3, 4, 0]]),
        (8, [[1, 0, 2, 0, 4, 4], [1, 0, 0, 2, 4, 0]]),
    ):
        expected = np.where(where, border_weights_scipy(np.asarray(instances)), 0)
        result = class_map_border_weights(labels, where=where, connectivity=connectivity)
        np.testing.assert_allclose(result, expected, rtol=1e-5)
    other = class_map_border_weights(np.asarray([[0, 1, 1, 0]]), background=1)
    np.testing.assert_allclose(other, border_weights(np.asarray([[1, 0, 0, 2]])), rtol=1e-6)


@pytest.mark.parametrize("class_weights", [None, (0.5, 2.0, 1.0)])
def test_option_of_cross_entropy(class_weights):
    rng = np.random.default_rng(1)
    labels = np.repeat(np.repeat(rng.integers(0, 3, (2, 4, 4)), 3, 1), 2, 2).astype(np.int32)
    where = rng.random(labels.shape) < 0.9
    labels = np.where(where, labels, 255)
    logits = rng.normal(0, 2, (*labels.shape, 3)).astype(np.float32)
    border = {"w0": 4.0, "sigma": 2.0}
    result = module.build(border_weight=border, class_weights=class_weights)(logits, labels, where=where)
    own = np.ones(labels.shape) if class_weights is None else np.asarray(class_weights)[np.where(where, labels, 0)]
    weights = np.asarray(class_map_border_weights(labels, where=where, **border)) + own
    assert np.any(weights > own + 1)
    expected = np.asarray(cross_entropy(logits, labels, where=where)) * weights
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("border", "error", "says"),
    [
        ({"sigma": 0.0}, JaxsegError, "border_weight.sigma"),
        ({"w0": -1.0}, JaxsegError, "border_weight.w0"),
        ({"connectivity": 6}, JaxsegError, "4, 8"),
        ({"sigam": 5.0}, UnknownNameError, "sigma"),
    ],
)
def test_bad_options(border, error, says):
    with pytest.raises(error, match=says):
        module.build(border_weight=border)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"instances": np.zeros((3, 3), np.float32)}, TypeError, "integers"),
        ({"where": np.ones((3, 3), np.int32)}, TypeError, "bool"),
        ({"where": np.ones((3, 2), bool)}, ValueError, "differ"),
        ({"sigma": 0.0}, ValueError, "sigma"),
    ],
)
def test_bad_input(arguments, error, says):
    with pytest.raises(error, match=says):
        border_weights(**{"instances": np.zeros((3, 3), np.int32)} | arguments)


@pytest.mark.data
def test_real_cells(shared_data, tmp_path):
    """All 125 nuclei of an image, and the cells between membranes, which touch only there."""
    nuclei = np.asarray(Image.open(shared_data / "nuclei" / "mask2d.tif")).astype(np.int32)[:256, :256]
    weights = np.asarray(jax.jit(border_weights)(nuclei))
    np.testing.assert_allclose(weights, border_weights_scipy(nuclei), rtol=1e-4, atol=1e-5)
    membranes = np.asarray(Image.open(shared_data / "isbi_em" / "label" / "0.png"))[:256, :256]
    cells = (membranes > 0).astype(np.int32)
    weights = np.asarray(jax.jit(class_map_border_weights)(cells))
    instances = np.asarray(connected_components(cells > 0))
    np.testing.assert_array_equal(instances, ndimage.label(cells)[0])
    np.testing.assert_allclose(weights, border_weights_scipy(instances), rtol=1e-4, atol=1e-5)
    # Membranes weigh far more than what lies inside the cells.
    assert weights[cells == 0].mean() > 3 * weights[cells == 1].mean()
    picture = np.concatenate([cells * 255, weights * 25.5], axis=1).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "border_weights.png")
