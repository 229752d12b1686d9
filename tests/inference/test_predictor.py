"""The Predictor against values computed by hand from models whose answer is known."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxseg.core.errors import JaxsegError
from jaxseg.core.mesh import make_mesh
from jaxseg.inference.predictor import Predictor, scaled, window_starts
from jaxseg.ops.resize import resize

MEAN, STD = (100.0, 110.0, 120.0), (50.0, 60.0, 70.0)


class PerPixel(nn.Module):
    """Logits are the normalised channels: what a pixel gets depends on nothing but itself."""

    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        return {"logits": image}


class Conv(nn.Module):
    """A 3 x 3 convolution: sees its neighbours, so mirroring, scale and windows matter."""

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        return {"logits": nn.Conv(3, (3, 3))(image)}


class Columns(nn.Module):
    """Logits tell a pixel's column in the view, whatever the image: shows where a window lies."""

    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        column = jnp.arange(image.shape[-2], dtype=jnp.float32)[:, None]
        return {"logits": jnp.broadcast_to(column * jnp.asarray([1.0, 0.0, 0.0]), (*image.shape[:-1], 3))}


def predictor(model, **options):
    return Predictor(model=model, mean=MEAN, std=STD, num_classes=3, **options)


def images(shape=(2, 9, 13, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def normalized(image):
    return (image.astype(np.float32) - np.asarray(MEAN, np.float32)) / np.asarray(STD, np.float32)


def softmax(x):
    e = np.exp(np.asarray(x, np.float64) - np.max(x, axis=-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def conv_variables():
    return Conv().init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), train=False)


def test_whole_image_gives_the_models_own_logits():
    image = images()
    logits = predictor(PerPixel()).logits({}, image)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, normalized(image), rtol=1e-6, atol=1e-6)
    labels = predictor(PerPixel()).labels({}, image)
    assert labels.dtype == jnp.int32
    np.testing.assert_array_equal(labels, np.argmax(normalized(image), axis=-1))


def test_half_precision_models_give_float32():
    class Half(nn.Module):
        def __call__(self, image, *, train):
            return {"logits": image.astype(jnp.bfloat16)}

    logits = predictor(Half()).logits({}, images())
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, normalized(images()), rtol=2**-8)


@pytest.mark.parametrize("window", [(4, 5), (9, 13), (20, 6), (16, 16), (1, 1)])
def test_windows_of_a_per_pixel_model_change_nothing(window):
    image = images()
    logits = jax.jit(predictor(PerPixel(), window_px=window).logits)({}, image)
    assert logits.shape == (2, 9, 13, 3)
    np.testing.assert_allclose(jnp.exp(logits), softmax(normalized(image)), atol=1e-6)


def test_overlaps_are_averaged():
    # Width 5, window 3, stride 2: windows at 0 and 2; column 2 is the third of the first and the first of the second.
    got = predictor(Columns(), window_px=(1, 3), stride_px=(1, 2)).logits({}, images((1, 1, 5, 3)))
    p = softmax(np.arange(3)[:, None] * np.asarray([1.0, 0.0, 0.0]))
    expected = np.stack([p[0], p[1], (p[2] + p[0]) / 2, p[1], p[2]])
    np.testing.assert_allclose(np.exp(got)[0, 0], expected, atol=1e-6)


def test_image_smaller_than_the_window_is_padded_with_the_mean(conv_variables):
    image = images((1, 5, 7, 3))
    padded = np.full((1, 8, 9, 3), 0, np.float32)
    padded[:, :5, :7] = normalized(image)
    expected = Conv().apply(conv_variables, jnp.asarray(padded), train=False)["logits"][:, :5, :7]
    got = predictor(Conv(), window_px=(8, 9)).logits(conv_variables, image)
    np.testing.assert_allclose(np.exp(got), softmax(expected), atol=1e-6)


def test_mirrored_and_plain_are_averaged(conv_variables):
    image = images((1, 6, 9, 3))

    def view(x):
        return softmax(Conv().apply(conv_variables, jnp.asarray(normalized(x)), train=False)["logits"])

    expected = (view(image) + view(image[:, :, ::-1])[:, :, ::-1]) / 2
    got = jax.jit(predictor(Conv(), flip=True).logits)(conv_variables, image)
    np.testing.assert_allclose(np.exp(got), expected, atol=1e-5)
    # The mirrored image gives the mirrored answer.
    other = predictor(Conv(), flip=True).logits(conv_variables, image[:, :, ::-1])
    np.testing.assert_allclose(np.exp(other)[:, :, ::-1], np.exp(got), atol=1e-5)


def test_scales_resize_logits_and_average_probabilities(conv_variables):
    image, scales = images((1, 9, 13, 3)), (0.5, 1.0, 1.75)
    total = 0.0
    for scale in scales:
        size = scaled(9, scale), scaled(13, scale)
        small = resize(jnp.asarray(normalized(image)), size, alignment="half_pixel")
        logits = Conv().apply(conv_variables, small, train=False)["logits"]
        total = total + softmax(resize(logits, (9, 13), alignment="half_pixel"))
    got = jax.jit(predictor(Conv(), scales=scales).logits)(conv_variables, image)
    np.testing.assert_allclose(np.exp(got), total / 3, atol=1e-5)


def test_constant_image_survives_everything():
    image = np.full((1, 9, 13, 3), 30, np.uint8)
    everything = predictor(PerPixel(), scales=(0.5, 1.25), flip=True, window_px=(5, 6), stride_px=(3, 3))
    got = jax.jit(everything.logits)({}, image)
    assert got.shape == (1, 9, 13, 3)
    np.testing.assert_allclose(np.exp(got), softmax(normalized(image)), atol=1e-5)


def test_probability_zero_has_a_finite_log():
    class Sure(nn.Module):
        def __call__(self, image, *, train):
            return {"logits": jnp.broadcast_to(jnp.asarray([0.0, 1e4, -1e4]), image.shape)}

    logits = predictor(Sure(), flip=True).logits({}, images((1, 3, 3, 3)))
    assert np.all(np.isfinite(logits)) and np.all(np.argmax(logits, -1) == 1)


@pytest.mark.parametrize("options", [{}, {"scales": (0.5, 1.0), "flip": True}, {"window_px": (6, 6)}])
def test_one_image_vmap_and_four_devices_agree(conv_variables, options):
    image = images((4, 9, 13, 3))
    function = jax.jit(predictor(Conv(), **options).logits)
    whole = np.asarray(function(conv_variables, image))
    mapped = jax.jit(jax.vmap(predictor(Conv(), **options).logits, in_axes=(None, 0)))(conv_variables, image)
    np.testing.assert_allclose(mapped, whole, atol=2e-5)
    rows = NamedSharding(make_mesh(), PartitionSpec("data"))
    sharded = function(conv_variables, jax.device_put(image, rows))
    np.testing.assert_allclose(sharded, whole, atol=2e-5)
    assert len(sharded.sharding.device_set) == 4


def test_equal_predictors_are_one_key():
    one, other = (predictor(Conv(), scales=s) for s in ([0.5, 1], (0.5, 1)))
    assert one == other and hash(one) == hash(other)


@pytest.mark.parametrize(
    ("arguments", "starts"),
    [((10, 4, 3), [0, 3, 6]), ((11, 4, 3), [0, 3, 6, 7]), ((4, 4, 2), [0]), ((5, 4, 4), [0, 1]), ((1, 1, 1), [0])],
)
def test_window_starts(arguments, starts):
    assert window_starts(*arguments) == starts


def test_windows_cover_every_pixel():
    for length in range(1, 40):
        for window in range(1, length + 1):
            for stride in range(1, window + 1):
                starts = window_starts(length, window, stride)
                covered = {pixel for start in starts for pixel in range(start, start + window)}
                assert covered == set(range(length)), (length, window, stride)


def test_scaled_rounds_half_up():
    assert [scaled(n, s) for n, s in ((9, 0.5), (13, 0.5), (1, 0.1), (10, 1.25))] == [5, 7, 1, 13]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scales": ()}, "config.evaluate.scales"),
        ({"scales": (1.0, 0.0)}, "config.evaluate.scales"),
        ({"scales": (float("inf"),)}, "config.evaluate.scales"),
        ({"window_px": (4,)}, "config.evaluate.window_px"),
        ({"window_px": (4, 0)}, "config.evaluate.window_px"),
        ({"stride_px": (2, 2)}, "stride_px"),
        ({"window_px": (4, 4), "stride_px": (5, 4)}, "left out"),
        ({"window_px": (4, 4), "stride_px": (0, 4)}, "left out"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises(JaxsegError, match=says):
        predictor(PerPixel(), **options)


def test_model_of_another_size_or_class_count_raises_at_trace_time():
    class Stride(nn.Module):
        def __call__(self, image, *, train):
            return {"logits": image[:, ::2, ::2]}

    with pytest.raises(ValueError, match="expected the image's size and 3 classes"):
        jax.eval_shape(lambda x: predictor(Stride()).logits({}, x), images())
