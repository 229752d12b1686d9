"""Sums over all axes but the last, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.ops.channel_sums import _rows, channel_sums, sum_of_images

SHAPES = [(5,), (7, 3), (1, 1, 1, 2), (2, 3, 4), (3, 17, 5, 4), (2, 8, 6, 3), (2, 3, 23, 4, 5), (2, 0, 4, 3)]
SHAPES += [(1, 257, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_sums(shape):
    terms = [np.asarray(jax.random.normal(jax.random.key(i), shape)) for i in range(2)]
    expected = [term.astype(np.float64).reshape(-1, shape[-1]).sum(0) for term in terms]
    for f in (channel_sums, jax.jit(channel_sums)):
        for got, wanted in zip(f(*terms), expected, strict=True):
            assert got.shape == shape[-1:] and got.dtype == jnp.float32
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    (one,) = channel_sums(terms[0])
    np.testing.assert_allclose(one, expected[0], rtol=1e-5, atol=1e-5)
    batched = jax.vmap(lambda x: channel_sums(x, 2 * x))(jnp.stack(terms))
    np.testing.assert_allclose(batched[1], 2 * np.stack(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 224, 224, 3), (2, 129, 65, 4), (2, 32, 32, 4)])
def test_rounding_is_that_of_a_plain_sum(shape):
    """Of squares of about 4, as a variance far from zero has them; one sum of all blocks of rows: up to 1e-6."""
    x = np.float32(-2 + 0.02 * np.random.default_rng(0).standard_normal(shape))
    exact = (x.astype(np.float64) ** 2).sum((0, 1, 2))
    found = jax.jit(lambda x: channel_sums(x * x, x)[0])(x)
    assert np.abs(np.asarray(found, np.float64) / exact - 1).max() < 2.5e-7


def test_whole_numbers_are_exact_up_to_two_to_the_24():
    x = jnp.ones((2, 513, 1001, 2)).at[..., 1].set(3)
    np.testing.assert_array_equal(jax.jit(channel_sums)(x)[0], [1027026, 3081078])


def test_rows_of_a_block():
    """Up to 8, at least 4 where there are so many, with the fewest zeros after the last."""
    assert [_rows(side) for side in (1, 2, 3, 4, 5, 8, 9, 12, 14, 17, 28, 224, 257, 513)] == [
        1, 2, 3, 4, 5, 8, 5, 6, 7, 6, 7, 8, 6, 5,
    ]  # fmt: skip


def test_a_nan_stays_in_its_channel():
    x = jnp.ones((2, 5, 3, 2)).at[0, 4, 1, 0].set(jnp.nan)
    (found,) = jax.jit(channel_sums)(x)
    assert np.isnan(found[0]) and float(found[1]) == 30


@pytest.mark.parametrize("platform, blocks", [("cpu", 1), ("cuda", 0), ("tpu", 0)])
def test_only_a_cpu_sums_in_blocks(platform, blocks):
    traced = jax.jit(lambda x: channel_sums(x, x * x)).trace(jnp.ones((2, 16, 4, 3)))
    assert traced.lower(lowering_platforms=(platform,)).as_text().count("x2x8x4x3x") == 0 or blocks
    assert ("x2x8x4x3x" in traced.lower(lowering_platforms=(platform,)).as_text()) == bool(blocks)


def test_what_is_summed_is_not_written():
    """The mask and the products stand in the loop of the reduction: temporary values are the blocks' sums."""

    def f(x, g):
        part = jnp.where(x > 0, g, 0)
        return channel_sums(part, part * x)

    shape = (2, 64, 32, 16)
    compiled = jax.jit(f).lower(*[jax.ShapeDtypeStruct(shape, jnp.float32)] * 2).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * np.prod(shape) / 2


def test_rows_and_batches_over_devices_are_summed_at_the_end():
    x = jax.random.normal(jax.random.key(0), (4, 16, 5, 3))
    mesh = Mesh(np.asarray(jax.devices()[:4]).reshape(2, 2), ("data", "space"))
    f = jax.jit(lambda x: channel_sums(x, x * x))
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data", "space")))
    for got, wanted in zip(f(placed), f(x), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    assert "all-gather" not in f.lower(placed).compile().as_text()


@pytest.mark.parametrize("shape", [(1,), (3, 108, 324), (2, 5, 7), (4, 0, 3)])
def test_sums_of_images(shape):
    x = np.asarray(100 + jax.random.normal(jax.random.key(0), shape))
    for f in (sum_of_images, jax.jit(sum_of_images)):
        found = f(x)
        assert found.shape == shape[1:] and found.dtype == jnp.float32
        np.testing.assert_allclose(found, x.astype(np.float64).sum(0), rtol=2e-7)


def test_images_over_devices_are_summed_at_the_end():
    x = jax.random.normal(jax.random.key(0), (4, 16, 5))
    placed = jax.device_put(x, NamedSharding(Mesh(np.asarray(jax.devices()[:4]), ("data",)), PartitionSpec("data")))
    compiled = jax.jit(sum_of_images).lower(placed).compile()
    np.testing.assert_allclose(compiled(placed), sum_of_images(x), rtol=1e-6, atol=1e-6)
    text = compiled.as_text()
    assert "all-reduce" in text and not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))
