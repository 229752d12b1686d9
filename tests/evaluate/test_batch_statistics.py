"""Statistics of batch norm over the training set, against NumPy on all the images at once."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.evaluate.batch_statistics import recompute_batch_statistics
from jaxseg.layers.conv_norm import ConvNorm
from jaxseg.layers.norm import BatchNorm, NormOptions


class Net(nn.Module):
    """A norm on the image, a convolution with one, and a frozen one."""

    @nn.compact
    def __call__(self, x, train=False):
        x = BatchNorm(NormOptions(momentum=0.3), name="first")(x, train)
        x = ConvNorm(4, 3, name="second")(x, train)
        return {"logits": BatchNorm(NormOptions(frozen=True), name="last")(x, train)}


IMAGES = np.random.default_rng(0).normal(3.0, 2.0, (7, 6, 5, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(lambda k: Net().init(k, jnp.zeros((1, 6, 5, 3))))(jax.random.key(0))


def test_the_first_norm_has_the_sets_mean_and_unbiased_variance(variables):
    for cut in (7, 3, 1):
        batches = [IMAGES[i : i + cut] for i in range(0, 7, cut)]
        stats = recompute_batch_statistics(Net(), variables, batches)["batch_stats"]
        pixels = IMAGES.reshape(-1, 3).astype(np.float64)
        np.testing.assert_allclose(stats["first"]["mean"], pixels.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(stats["first"]["var"], pixels.var(axis=0, ddof=1), rtol=1e-5)


def test_deeper_norms_see_what_the_batches_own_statistics_give(variables):
    new = recompute_batch_statistics(Net(), variables, [IMAGES])
    pixels = IMAGES.astype(np.float64)
    whitened = (pixels - pixels.mean(axis=(0, 1, 2))) / np.sqrt(pixels.var(axis=(0, 1, 2)) + 1e-5)
    kernel = variables["params"]["second"]["conv"]["kernel"]
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(whitened.astype(np.float32), kernel, (1, 1), "SAME", dimension_numbers=dimensions)
    np.testing.assert_allclose(new["batch_stats"]["second"]["norm"]["mean"], np.mean(y, axis=(0, 1, 2)), atol=1e-5)
    expected = np.var(np.asarray(y, np.float64), axis=(0, 1, 2), ddof=1)
    np.testing.assert_allclose(new["batch_stats"]["second"]["norm"]["var"], expected, rtol=1e-4)


def test_frozen_norms_and_parameters_stay(variables):
    new = recompute_batch_statistics(Net(), variables, [IMAGES])
    assert new["params"] is variables["params"]
    for name in ("mean", "var"):
        np.testing.assert_array_equal(new["batch_stats"]["last"][name], variables["batch_stats"]["last"][name])


def test_no_norms_and_no_images(variables):
    plain = {"params": variables["params"]}
    assert recompute_batch_statistics(Net(), plain, []) is plain
    with pytest.raises(JaxsegError, match="no image"):
        recompute_batch_statistics(Net(), variables, [])


def test_nothing_is_kept_where_nobody_asks(variables):
    _, updated = Net().apply(variables, IMAGES, train=True, mutable=["batch_stats"])
    assert set(updated) == {"batch_stats"}
    assert set(variables) == {"params", "batch_stats"}
