"""Boundary and Hausdorff losses against hand values and NumPy twins that go a pixel at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.core.names import resolve
from jaxseg.losses.boundary import boundary
from jaxseg.losses.hausdorff_convolution import hausdorff_convolution
from jaxseg.losses.hausdorff_distance_transform import hausdorff_distance_transform
from jaxseg.losses.hausdorff_erosion import hausdorff_erosion

CLASSES = 3
NAMES = ["boundary", "hausdorff_distance_transform", "hausdorff_erosion", "hausdorff_convolution"]


def example(seed=0, shape=(2, 9, 8), void=0.15):
    """Blobs, some of them predicted wrongly with certainty; class 2 is in the first image alone."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(shape[-2:])
    labels = np.stack([(rows // 4 + columns // 3 + i) % (3 - i) for i in range(shape[0])]).astype(np.int32)
    logits = rng.normal(0, 1, (*shape, CLASSES)) + 3 * np.eye(CLASSES)[labels]
    logits[0, 3:, 4:, 1] += 7
    where = rng.random(shape) >= void
    return logits.astype(np.float32), np.where(where, labels, 255).astype(np.int32), where


def softmax(logits):
    e = np.exp(np.asarray(logits, np.float64) - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def nearest(mask, y, x):
    rows, columns = np.nonzero(mask)
    return np.sqrt((rows - y) ** 2 + (columns - x) ** 2).min()


def phi_numpy(mask, where):
    phi = np.zeros(mask.shape)
    inside, outside = mask & where, ~mask & where
    if inside.any() and outside.any():
        for y, x in zip(*np.nonzero(where), strict=True):
            phi[y, x] = 1 - nearest(outside, y, x) if mask[y, x] else nearest(inside, y, x)
    return phi


def field_numpy(mask, where):
    """|distance| to the other side, 0 without an outline."""
    field = np.zeros(mask.shape)
    inside, outside = mask & where, ~mask & where
    if inside.any() and outside.any():
        for y, x in zip(*np.nonzero(where), strict=True):
            field[y, x] = nearest(outside if mask[y, x] else inside, y, x)
    return field


def boundary_numpy(p, y, where):
    return p * phi_numpy(y, where)


def distance_transform_numpy(p, y, where, alpha=2.0):
    return where * (p - y) ** 2 * (field_numpy(p > 0.5, where) ** alpha + field_numpy(y, where) ** alpha)


def erosion_numpy(p, y, where, alpha=2.0, erosions=10):
    left, total = where * (p - y) ** 2, np.zeros(p.shape)
    for k in range(1, erosions + 1):
        wide = np.pad(left, 1)
        cross = wide[1:-1, 1:-1] + wide[:-2, 1:-1] + wide[2:, 1:-1] + wide[1:-1, :-2] + wide[1:-1, 2:]
        left = where * np.maximum(cross / 5 - 0.5, 0)
        low, high = left[where].min(), left[where].max()
        if low != high:
            left = where * (left - low) / (high - low)
        total += k**alpha * left
    return total


def disc_numpy(image, radius):
    """The definition, an offset at a time."""
    h, w = image.shape
    wide, total, count = np.pad(image, radius), np.zeros(image.shape), 0
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dy * dy + dx * dx <= radius * radius:
                total += wide[radius + dy : radius + dy + h, radius + dx : radius + dx + w]
                count += 1
    return total / count


def convolution_numpy(p, y, where, alpha=2.0, radii=(3, 6, 9, 12, 15, 18)):
    p, y = where * p, where * y
    soft = lambda x: np.where(x >= 0.5, x, 0)  # noqa: E731
    total = np.zeros(p.shape)
    for r in radii:
        outside_p, outside_y = disc_numpy(where * (1 - p), r), disc_numpy(where * (1 - y), r)
        predicted = soft(outside_y) + soft(disc_numpy(p, r))
        true = soft(disc_numpy(y, r)) + soft(outside_p)
        total += r**alpha * (p - y) ** 2 * (predicted * p + true * y)
    return where * total


CASES = [
    (boundary, boundary_numpy, {}),
    (hausdorff_distance_transform, distance_transform_numpy, {}),
    (hausdorff_distance_transform, distance_transform_numpy, {"alpha": 1.0}),
    (hausdorff_erosion, erosion_numpy, {}),
    (hausdorff_erosion, erosion_numpy, {"alpha": 0.5, "erosions": 3}),
    (hausdorff_convolution, convolution_numpy, {}),
    (hausdorff_convolution, convolution_numpy, {"alpha": 1.0, "radii": (1, 2, 4)}),
]


@pytest.mark.parametrize(("function", "twin", "options"), CASES)
@pytest.mark.parametrize("void", [0.0, 0.15])
def test_numpy_twin(function, twin, options, void):
    logits, labels, where = example(void=void)
    result = jax.jit(lambda x, y, w: function(x, y, where=w, **options))(logits, labels, where)
    p = softmax(logits)
    expected = np.stack(
        [[twin(p[i, ..., c], labels[i] == c, where[i], **options) for c in range(CLASSES)] for i in range(2)]
    )
    assert result.dtype == jnp.float32 and np.any(expected)
    np.testing.assert_allclose(result, np.moveaxis(expected, 1, -1), rtol=3e-5, atol=1e-5)
    chosen = function(logits, labels, where=where, classes=(2, 0), **options)
    np.testing.assert_allclose(chosen, np.asarray(result)[..., [2, 0]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("function", "twin", "options"), CASES)
def test_multi_label(function, twin, options):
    """Targets of 0 and 1 a class, which overlap, and a mask a class."""
    rng = np.random.default_rng(1)
    logits, _, _ = example()
    labels = np.repeat(np.repeat(rng.random((2, 3, 2, CLASSES)) < 0.5, 3, 1), 4, 2)
    where = rng.random(labels.shape) < 0.9
    result = function(logits, labels, where=where, activation="sigmoid", **options)
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    expected = np.zeros(p.shape)
    for i, c in np.ndindex(2, CLASSES):
        expected[i, ..., c] = twin(p[i, ..., c], labels[i, ..., c], where[i, ..., c], **options)
    np.testing.assert_allclose(result, expected, rtol=3e-5, atol=1e-5)
    loss = resolve("losses", function.__name__)(multi_hot=True, activation="sigmoid", **options)
    np.testing.assert_allclose(
        loss.mean(logits, labels.astype(np.int32), where=where), expected.sum() / where.sum(), rtol=3e-5
    )


@pytest.mark.parametrize("name", NAMES)
def test_mean_is_over_valid_pixels_and_classes(name):
    logits, labels, where = example()
    loss = resolve("losses", name)(classes=(0, 1))
    values = np.asarray(loss(logits, labels, where=where), np.float64)
    assert values.shape == (2, 9, 8, 2)
    np.testing.assert_allclose(loss.mean(logits, labels, where=where), values.sum() / (2 * where.sum()), rtol=1e-5)


def row(probabilities, labels):
    """Logits of two classes whose second has these probabilities, `[1, 1, n]`."""
    p = np.asarray(probabilities, np.float32)[None, None]
    return np.log(np.stack([1 - p, p], axis=-1)), np.asarray(labels, np.int32)[None, None]


def test_boundary_by_hand():
    logits, labels = row([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1])
    result = boundary(logits, labels, classes=(1,))[0, 0, :, 0]
    np.testing.assert_allclose(result, [0.1 * 2, 0.2 * 1, 0.3 * 0, 0.4 * -1], atol=1e-6)
    scaled = boundary(logits, labels, classes=(1,), normalized=True)[0, 0, :, 0]
    np.testing.assert_allclose(scaled, np.asarray(result) / np.sqrt(17), atol=1e-6)
    # Class 1 covers all, class 0 nothing: neither has an outline.
    np.testing.assert_array_equal(boundary(logits, np.ones_like(labels)), np.zeros((1, 1, 4, 2)))


def test_normalized_diagonal_is_of_the_valid_part_of_each_image():
    logits, labels = np.zeros((2, 6, 9, 2), np.float32), np.zeros((2, 6, 9), np.int32)
    labels[:, 2, 3:5] = 1
    where = np.zeros(labels.shape, bool)
    where[0, 1:4, 2:6] = True  # 3 x 4
    where[1, 2:3, 3:7] = True  # 1 x 4
    plain, scaled = (boundary(logits, labels, where=where, normalized=n) for n in (False, True))
    np.testing.assert_allclose(scaled[0] * 5, plain[0], rtol=1e-6)
    np.testing.assert_allclose(scaled[1] * np.float32(np.sqrt(17)), plain[1], rtol=1e-6)


def test_void_is_neither_side_of_the_outline():
    logits, labels = row([0.5] * 6, [0, 0, 7, 7, 1, 1])
    result = boundary(logits, labels, where=labels < 2, classes=(1,))[0, 0, :, 0]
    np.testing.assert_allclose(result, [2, 1.5, 0, 0, -1, -1.5], atol=1e-6)


def test_distance_transform_by_hand():
    logits, labels = row([0.6, 0.6, 0.6], [0, 0, 1])
    result = hausdorff_distance_transform(logits, labels, classes=(1,))[0, 0, :, 0]
    np.testing.assert_allclose(result, [1.44, 0.36, 0.16], rtol=1e-5)
    logits, labels = row([0.6, 0.2, 0.2], [0, 0, 1])  # D_p = (1, 1, 2), D_y = (2, 1, 1)
    result = hausdorff_distance_transform(logits, labels, classes=(1,))[0, 0, :, 0]
    np.testing.assert_allclose(result, [0.36 * 5, 0.04 * 2, 0.64 * 5], rtol=1e-5)
    result = hausdorff_distance_transform(logits, labels, classes=(1,), alpha=1.0, one_sided=True)[0, 0, :, 0]
    np.testing.assert_allclose(result, [0.36 * 2, 0.04, 0.64], rtol=1e-5)


def test_erosion_by_hand():
    certain = np.zeros((1, 3, 3, 2), np.float32)
    certain[..., 1] = 50
    result = hausdorff_erosion(certain, np.zeros((1, 3, 3), np.int32))[0, ..., 1]
    np.testing.assert_allclose(result, [[0, 0.5, 0], [0.5, 5, 0.5], [0, 0.5, 0]], atol=1e-5)


def test_convolution_by_hand():
    certain = np.zeros((1, 3, 3, 2), np.float32)
    certain[..., 1] = 50
    # All predicted, nothing true, radius 1: B p = B (1 - y) = 1 at the centre, .8 at sides, .6 at corners.
    result = hausdorff_convolution(certain, np.zeros((1, 3, 3), np.int32), radii=(1,))[0, ..., 1]
    np.testing.assert_allclose(result, [[1.2, 1.6, 1.2], [1.6, 2, 1.6], [1.2, 1.6, 1.2]], atol=1e-5)
    assert not np.any(hausdorff_convolution(certain[:, :1, :1], np.zeros((1, 1, 1), np.int32), radii=(1,)))


@pytest.mark.parametrize("radii", [(1, 4, 7), tuple(range(1, 19))])
def test_convolution_gradients_over_tiles(monkeypatch, radii):
    """The written-down gradient against NumPy, where tiles of rows do not fit the image and radii exceed it."""
    monkeypatch.setattr("jaxseg.losses.hausdorff_convolution.TILE_ROWS", 5)
    rng, shape = np.random.default_rng(2), (2, 13, 9)
    labels = np.repeat(np.repeat(rng.random((2, 4, 2)) < 0.5, 4, 1), 5, 2)[:, :13, :9]
    logits = (rng.normal(0, 1, shape) + 4 * (np.roll(labels, 2, 2) - 0.5)).astype(np.float32)
    upstream, where = rng.random(shape).astype(np.float32), rng.random(shape) < 0.9
    value = lambda x: hausdorff_convolution(  # noqa: E731
        x[..., None], labels[..., None], where=where[..., None], radii=radii, activation="sigmoid"
    )[..., 0]
    result, pull = jax.vjp(jax.jit(value), jnp.asarray(logits))
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    expected = np.stack([convolution_numpy(*arrays, radii=radii) for arrays in zip(p, labels, where, strict=True)])
    np.testing.assert_allclose(result, expected, rtol=3e-5, atol=1e-4)
    expected = np.stack(
        [convolution_gradient_numpy(*a, radii) for a in zip(p, labels, where, upstream, strict=True)]
    ) * (p * (1 - p))
    np.testing.assert_allclose(pull(jnp.asarray(upstream))[0], expected, rtol=2e-4, atol=1e-5 * np.abs(expected).max())


def convolution_gradient_numpy(p, y, where, upstream, radii, alpha=2.0):
    """By the rules of products and of sums; a disc is symmetric, so that its transpose is itself."""
    p, y, gradient = where * p, where * y, np.zeros(p.shape)
    soft = lambda x: np.where(x >= 0.5, x, 0)  # noqa: E731
    for r in radii:
        inside_p, outside_p = disc_numpy(p, r), disc_numpy(where * (1 - p), r)
        predicted, true = (
            soft(disc_numpy(where * (1 - y), r)) + soft(inside_p),
            soft(disc_numpy(y, r)) + soft(outside_p),
        )
        outer = where * upstream * r**alpha
        gradient += outer * (2 * (p - y) * (predicted * p + true * y) + (p - y) ** 2 * predicted)
        gradient += disc_numpy(outer * (p - y) ** 2 * ((inside_p >= 0.5) * p - (outside_p >= 0.5) * y), r)
    return where * gradient


def test_no_gradient_through_distances():
    logits, labels, where = example()
    p = softmax(logits)
    factors = np.asarray(hausdorff_distance_transform(logits, labels, where=where))
    hot = (where[..., None] & (labels[..., None] == np.arange(CLASSES))).astype(np.float32)
    factors = np.where(where[..., None], factors / np.maximum((p - hot) ** 2, 1e-30), 0).astype(np.float32)
    expected = jax.grad(lambda x: jnp.sum(factors * jnp.where(where[..., None], jax.nn.softmax(x) - hot, 0.0) ** 2))(
        jnp.asarray(logits)
    )
    found = jax.grad(lambda x: jnp.sum(hausdorff_distance_transform(x, labels, where=where)))(jnp.asarray(logits))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_boundary_is_smallest_at_the_truth():
    _, labels, where = example(void=0)
    at = lambda wrong: float(  # noqa: E731
        resolve("losses", "boundary")().mean(20 * np.eye(CLASSES, dtype=np.float32)[(labels + wrong) % CLASSES], labels)
    )
    assert at(0) < 0 and at(0) < at(1) and at(0) < at(2)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("boundary", {"classes": "present"}, "all or a list"),
        ("boundary", {"classes": (1, 1)}, "once"),
        ("boundary", {"activation": "relu"}, "softmax, sigmoid"),
        ("boundary", {"multi_hot": True}, "needs activation"),
        ("hausdorff_distance_transform", {"alpha": -1}, "at least 0"),
        ("hausdorff_erosion", {"erosions": 0}, "at least 1"),
        ("hausdorff_erosion", {"erosions": 2.5}, "whole number"),
        ("hausdorff_convolution", {"radii": ()}, "at least one"),
        ("hausdorff_convolution", {"radii": (3, 0)}, "at least 1"),
        ("hausdorff_convolution", {"radii": (3, 3)}, "once"),
    ],
)
def test_bad_options(name, options, says):
    with pytest.raises(JaxsegError, match=says):
        resolve("losses", name)(**options)


@pytest.mark.parametrize("name", NAMES)
def test_bad_input(name):
    logits, labels, _ = example(void=0)
    with pytest.raises(ValueError, match="class 3 .* not in 0..2"):
        resolve("losses", name)(classes=(3,))(logits, labels)
    with pytest.raises(ValueError, match="h, w, c"):
        resolve("losses", name)()(logits[0, 0], labels[0, 0])
