"""Under jit, with a batch split over four devices, no operation may bring the batch together: read off the program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.layers.norm import batch_moments
from jaxseg.ops import narrow
from jaxseg.ops.conv import conv
from jaxseg.ops.pooling import adaptive_average_pool, average_pool, max_pool, max_pool_with_indices, unpool
from jaxseg.ops.resize import resize
from jaxseg.ops.transposed import bilinear_conv_transpose, conv_transpose
from jaxseg.ops.twice import conv_of_twice

MOVES = ("all-gather", "all-to-all", "collective-permute")


def kernel(*shape):
    return 0.1 * jax.random.normal(jax.random.key(1), shape)


def pool_and_unpool(x, _):
    values, indices = max_pool_with_indices(x, ceil=True)
    return unpool(values, indices, x.shape[1:3])


def normalised(x, w):
    mean, var = batch_moments(x, shift=jnp.zeros_like(w))
    return (x - mean) * jax.lax.rsqrt(var + 1e-3) * w


# name -> (channels of the image, parameters or None, operation of both)
OPERATIONS = {
    "depthwise": (6, kernel(3, 3, 1, 6), lambda x, w: conv(x, w, groups=6)),
    "depthwise, stride 2": (6, kernel(3, 3, 1, 6), lambda x, w: conv(x, w, strides=2, groups=6)),
    "depthwise, rate 3": (6, kernel(3, 3, 1, 6), lambda x, w: conv(x, w, dilation=3, groups=6)),
    "grouped in blocks": (48, kernel(3, 3, 4, 48), lambda x, w: conv(x, w, groups=12)),
    "grouped, stride 2": (48, kernel(3, 3, 4, 24), lambda x, w: conv(x, w, strides=2, groups=12)),
    "two narrow groups": (6, kernel(3, 3, 3, 4), lambda x, w: conv(x, w, groups=2)),
    "two wide groups": (64, kernel(3, 3, 32, 4), lambda x, w: conv(x, w, groups=2)),
    "pointwise": (6, kernel(1, 1, 6, 9), conv),
    "dense": (6, kernel(3, 3, 6, 4), conv),
    "dense, stride 2": (6, kernel(3, 3, 6, 4), lambda x, w: conv(x, w, strides=2)),
    "dense, rate 2": (6, kernel(3, 3, 6, 4), lambda x, w: conv(x, w, dilation=2)),
    "enlarged": (6, kernel(3, 3, 6, 4), conv_of_twice),
    "transposed": (6, kernel(4, 4, 3, 6), lambda x, w: conv_transpose(x, w, strides=2, padding=1)),
    "transposed, odd": (6, kernel(3, 3, 5, 6), lambda x, w: conv_transpose(x, w, strides=2)),
    "transposed, grouped": (6, kernel(4, 4, 2, 6), lambda x, w: conv_transpose(x, w, strides=2, groups=3)),
    "transposed, depthwise": (6, kernel(4, 4, 1, 6), lambda x, w: conv_transpose(x, w, strides=2, groups=6)),
    "bilinear transposed": (
        3,
        None,
        lambda x, _: bilinear_conv_transpose(x, kernel_size=4, strides=2, padding=1, size=(18, 16)),
    ),
    "resize": (3, None, lambda x, _: resize(x, (17, 21), alignment="half_pixel")),
    "resize, corners": (3, None, lambda x, _: resize(x, (5, 4), alignment="align_corners")),
    "resize, nearest": (3, None, lambda x, _: resize(x, (17, 21), alignment="half_pixel", method="nearest")),
    "max pool": (3, None, lambda x, _: max_pool(x, 2)),
    "max pool, windows overlap": (3, None, lambda x, _: max_pool(x, 3, strides=2, padding=1)),
    "unpooling": (3, None, pool_and_unpool),
    "average pool": (3, None, lambda x, _: average_pool(x, 3, strides=2, padding=1)),
    "adaptive pool": (3, None, lambda x, _: adaptive_average_pool(x, (3, 2))),
    "batch norm": (3, kernel(3), normalised),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_batch_stays_split(name):
    """Forward and gradients: one device's values, and only the parameters' gradient (or the moments) is summed."""
    check(name)


@pytest.mark.parametrize(
    "name", [name for name in OPERATIONS if any(n in name for n in ("max", "unp", "enl", "trans"))]
)
def test_tpus_ways_keep_it_split(name, tpu):
    del tpu
    check(name)


def test_the_kernel_gradient_of_few_channels_keeps_it_split(monkeypatch):
    monkeypatch.setattr(narrow, "GRADIENT_PIXELS", 1)
    jax.clear_caches()
    check("dense, stride 2")
    jax.clear_caches()


def check(name):
    channels, parameters, operation = OPERATIONS[name]
    x = jax.random.normal(jax.random.key(0), (4, 9, 8, channels))
    w = jnp.zeros(()) if parameters is None else parameters
    g = jax.random.normal(jax.random.key(2), jax.eval_shape(operation, x, w).shape)

    def f(x, w, g):
        y, back = jax.vjp(operation, x, w)
        return y, *back(g)

    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    split, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    placed = [jax.device_put(a, s) for a, s in ((x, split), (w, everywhere), (g, split))]
    compiled = jax.jit(f, out_shardings=(split, split, everywhere)).lower(*placed).compile()
    text = compiled.as_text()
    assert not [move for move in MOVES if move in text]
    assert ("all-reduce" in text) == (parameters is not None)
    for found, expected in zip(compiled(*placed), jax.jit(f)(x, w, g), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=5e-5)


def test_the_search_sees_a_gathered_batch():
    """XLA's own grouped convolution brings the batch together: what this file looks for is there to be found."""
    x, w = jnp.ones((4, 9, 8, 48)), kernel(3, 3, 4, 48)
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    split, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())

    def stock(x, w):
        y = jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=12
        )
        return jnp.sum(y**2)

    placed = jax.device_put(x, split), jax.device_put(w, everywhere)
    text = (
        jax.jit(jax.grad(stock, argnums=(0, 1)), out_shardings=(split, everywhere)).lower(*placed).compile().as_text()
    )
    assert [move for move in MOVES if move in text]
