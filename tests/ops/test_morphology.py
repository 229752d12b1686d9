"""Morphology against SciPy, scikit-image and hand values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops.morphology import boundary, dilate, erode, shift

ndimage = pytest.importorskip("scipy.ndimage")


def element(structure, radius):
    y, x = np.indices((2 * radius + 1,) * 2) - radius
    shapes = {
        "square": np.ones(y.shape, bool),
        "cross": (y == 0) | (x == 0),
        "diamond": np.abs(y) + np.abs(x) <= radius,
    }
    return shapes[structure]


def example(density, seed=0, shape=(3, 13, 17)):
    rng = np.random.default_rng(seed)
    return rng.random(shape) < density, rng.random(shape) < 0.8


@pytest.mark.parametrize("structure", ["square", "cross", "diamond"])
@pytest.mark.parametrize("radius", [0, 1, 2, 3, 5, 6, 30])
def test_scipy(structure, radius):
    few, many = example(0.03)[0], example(0.97, seed=1)[0]
    one = element(structure, radius)
    dilated, eroded = dilate(few, radius, structure=structure), erode(many, radius, structure=structure)
    bordered = erode(many, radius, structure=structure, beyond=False)
    for i in range(3):
        np.testing.assert_array_equal(dilated[i], ndimage.binary_dilation(few[i], one))
        np.testing.assert_array_equal(eroded[i], ndimage.binary_erosion(many[i], one, border_value=1))
        np.testing.assert_array_equal(bordered[i], ndimage.binary_erosion(many[i], one))


def test_diamond_is_scipy_iterated():
    mask = example(0.05)[0][0]
    np.testing.assert_array_equal(dilate(mask, 3, structure="diamond"), ndimage.binary_dilation(mask, iterations=3))


@pytest.mark.parametrize("structure", ["square", "cross", "diamond"])
def test_void_is_neither(structure):
    """Void counts as outside for dilation and as inside for erosion; one step of what SciPy does to masks so filled."""
    mask, where = example(0.5)
    one = element(structure, 1)
    dilated = dilate(mask, structure=structure, where=where)
    eroded = erode(mask, structure=structure, where=where)
    for i in range(3):
        expected = ndimage.binary_dilation(mask[i] & where[i], one) & where[i]
        np.testing.assert_array_equal(dilated[i], expected)
        expected = ndimage.binary_erosion(mask[i] | ~where[i], one, border_value=1) & where[i]
        np.testing.assert_array_equal(eroded[i], expected)


def boundary_loops(labels, connectivity, where, beyond):
    """A pixel and a neighbour at a time."""
    result = np.zeros(labels.shape, bool)
    near = [(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)][:connectivity]
    for y, x in np.ndindex(labels.shape):
        for dy, dx in near:
            v, u = y + dy, x + dx
            if 0 <= v < labels.shape[0] and 0 <= u < labels.shape[1]:
                result[y, x] |= where[v, u] and labels[v, u] != labels[y, x]
            else:
                result[y, x] |= beyond
        result[y, x] &= where[y, x] and (labels.dtype != bool or labels[y, x])
    return result


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize("kind", ["mask", "labels"])
def test_boundary(connectivity, beyond, kind):
    mask, where = example(0.7)
    labels = mask if kind == "mask" else np.random.default_rng(3).integers(0, 3, mask.shape).astype(np.uint8)
    labels = np.repeat(np.repeat(labels, 2, 1), 2, 2)
    where = np.repeat(np.repeat(where, 2, 1), 2, 2)
    result = jax.jit(lambda x, w: boundary(x, connectivity=connectivity, where=w, beyond=beyond))(labels, where)
    whole = boundary(labels, connectivity=connectivity, beyond=beyond)
    for i in range(3):
        np.testing.assert_array_equal(result[i], boundary_loops(labels[i], connectivity, where[i], beyond))
        np.testing.assert_array_equal(whole[i], boundary_loops(labels[i], connectivity, np.ones_like(where[i]), beyond))


def test_values_under_void_have_no_influence_and_padding_changes_nothing():
    labels = np.random.default_rng(4).integers(0, 3, (2, 9, 8)).astype(np.int32)
    where = np.random.default_rng(5).random(labels.shape) < 0.7
    result = boundary(labels, connectivity=8, where=where)
    spoiled = np.where(where, labels, 255).astype(np.int32)
    pad = ((0, 0), (1, 2), (3, 0))
    other = boundary(np.pad(spoiled, pad, constant_values=7), connectivity=8, where=np.pad(where, pad))
    np.testing.assert_array_equal(other[:, 1:-2, 3:], result)


def test_hand_values():
    np.testing.assert_array_equal(boundary(np.asarray([[0, 0, 1, 1]])), [[False, True, True, False]])
    corner = np.asarray([[1, 0], [0, 0]])
    np.testing.assert_array_equal(boundary(corner), [[True, True], [True, False]])
    np.testing.assert_array_equal(boundary(corner, connectivity=8), np.ones((2, 2), bool))
    np.testing.assert_array_equal(boundary(corner.astype(bool)), [[True, False], [False, False]])
    np.testing.assert_array_equal(shift(jnp.arange(6).reshape(2, 3), 1, -1, 9), [[9, 9, 9], [1, 2, 9]])
    mask = np.ones((3, 3), bool)
    assert not np.any(boundary(mask))
    np.testing.assert_array_equal(boundary(mask, beyond=True), mask ^ ndimage.binary_erosion(mask))


def test_leading_dimensions():
    mask = example(0.6, shape=(2, 2, 7, 5))[0]
    np.testing.assert_array_equal(erode(mask), jax.vmap(jax.vmap(erode))(mask))
    np.testing.assert_array_equal(erode(mask)[1, 0], erode(mask[1, 0]))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda m: dilate(m.astype(np.int32)), TypeError, "bool"),
        (lambda m: dilate(m, where=m.astype(np.int32)), TypeError, "bool"),
        (lambda m: dilate(m, where=m[:2]), ValueError, "differ"),
        (lambda m: dilate(m, -1), ValueError, "negative"),
        (lambda m: erode(m, structure="disk"), ValueError, "square, cross, diamond"),
        (lambda m: dilate(m[0]), ValueError, "rows and columns"),
        (lambda m: boundary(m.astype(np.float32)), TypeError, "integers"),
        (lambda m: boundary(m, connectivity=6), ValueError, "4 or 8"),
        (lambda m: boundary(m.astype(np.int32), where=m[:2]), ValueError, "differ"),
    ],
)
def test_bad_input(call, error, says):
    with pytest.raises(error, match=says):
        call(np.zeros((3, 3), bool))
