"""A batch norm's factor in the kernel of the convolution before it: what NVIDIA GPUs compute at test, on this CPU."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.backbones.densenet import BottleneckLayer
from jaxseg.backbones.vgg16 import ConvStage
from jaxseg.layers.conv_norm import Conv, ConvNorm, SeparableConvNorm, conv_then_norm
from jaxseg.layers.norm import BatchNorm, NormOptions
from jaxseg.models import segnet, unet
from tests.ops.arrays import normal, relative

BLOCKS = {
    "3x3": functools.partial(ConvNorm, 16, 3),
    "strided": functools.partial(ConvNorm, 8, 3, strides=2, activation=nn.relu6),
    "rate": functools.partial(ConvNorm, 8, 3, dilation=2, activation=None),
    "1x1": functools.partial(ConvNorm, 24),
    "twice": functools.partial(ConvNorm, 8, 3, twice=True),
    "separable": functools.partial(SeparableConvNorm, 8),
    "unet": functools.partial(unet.DoubleConv, 8, "same", NormOptions()),
    "segnet": functools.partial(segnet.Layer, 8),
    "vgg": functools.partial(ConvStage, (8, 8), batch_norm=True),
}


def filled(variables):
    """The same tree with numbers as after training: kernels and factors of both signs, variances from 0.3 to 4."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(variables)

    def value(seed, name, leaf):
        if name == "var":
            return jax.random.uniform(jax.random.key(seed), leaf.shape, minval=0.3, maxval=4.0)
        return leaf if name == "kernel" else normal(seed, *leaf.shape)

    return structure.unflatten(value(i, path[-1].key, leaf) for i, (path, leaf) in enumerate(leaves))


def test_by_hand(cuda):
    """1 x 3 + 0.5, less the mean 1.5, over the deviation 2, times 4 and 1 more: (3 x 2) + (1 - 1 x 2)."""
    del cuda
    conv, norm = Conv(1, use_bias=True, parent=None), BatchNorm(NormOptions(epsilon=0.0), parent=None)

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return conv_then_norm(conv.copy(name="conv"), norm.copy(name="norm"), x, False)

    variables = {
        "params": {
            "conv": {"kernel": jnp.full((1, 1, 1, 1), 3.0), "bias": jnp.full(1, 0.5)},
            "norm": {"scale": jnp.full(1, 4.0), "bias": jnp.full(1, 1.0)},
        },
        "batch_stats": {"norm": {"mean": jnp.full(1, 1.5), "var": jnp.full(1, 4.0)}},
    }
    x = jnp.asarray([1.0, 0.0, -1.0]).reshape(1, 1, 3, 1)
    np.testing.assert_allclose(np.ravel(Block().apply(variables, x)), [5, -1, -7])


@pytest.mark.parametrize("name", BLOCKS)
def test_values_and_gradients_are_those_of_the_norm_behind(name, request):
    x = normal(0, 2, 9, 8, 8)
    block = BLOCKS[name]()
    variables = filled(block.init(jax.random.key(1), x, False))
    g = normal(2, *block.apply(variables, x, False).shape)

    def run(dtype):
        module = block.clone(dtype=dtype)
        y, back = jax.vjp(lambda variables, x: module.apply(variables, x, False), variables, x)
        return y.astype(jnp.float32), back(g.astype(y.dtype))

    exact, rounded = run(jnp.float32), run(jnp.bfloat16)
    request.getfixturevalue("cuda")
    for mine, its in zip(jax.tree.leaves(run(jnp.float32)), jax.tree.leaves(exact), strict=True):
        assert relative(mine, its) < 1e-5
    # In 16 bits the shift is rounded as well, and the values before it, which a GPU's routines keep in float32.
    assert 1e-4 < relative(run(jnp.bfloat16)[0], exact[0]) < 2 * relative(rounded[0], exact[0])


def test_the_inner_norm_of_a_dense_layer(request):
    x = normal(0, 2, 6, 5, 8)
    layer = BottleneckLayer(4)
    variables = filled(layer.init(jax.random.key(1), x, False, method="grow"))
    expected = layer.apply(variables, x, False, method="grow")
    request.getfixturevalue("cuda")
    assert relative(layer.apply(variables, x, False, method="grow"), expected) < 1e-5


def multiplications(block, platform, train=False):
    """How many there are of all values of a map of 8 x 8 x 16."""
    x = jnp.zeros((2, 8, 8, 16))
    variables = block.init(jax.random.key(0), x, train)
    step = jax.jit(lambda variables, x: block.apply(variables, x, train, mutable=["batch_stats"])[0])
    text = step.trace(variables, x).lower(lowering_platforms=(platform,)).as_text()
    return sum("stablehlo.multiply" in line and "tensor<2x8x8x16xf32>" in line for line in text.splitlines())


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_a_gpu_multiplies_no_map_at_test(kernel_size):
    block = ConvNorm(16, kernel_size)
    assert [multiplications(block, platform) for platform in ("cuda", "cpu", "tpu")] == [0, 1, 1]


def test_norms_with_the_batchs_statistics_and_depthwise_ones_stay_behind():
    for block in (ConvNorm(16), ConvNorm(16, norm=NormOptions(frozen=True))):
        assert multiplications(block, "cuda", train=True) == multiplications(block, "tpu", train=True) > 0
    at_test = ConvNorm(16, norm=NormOptions(batch_at_test=True))
    assert multiplications(at_test, "cuda") == multiplications(at_test, "tpu") > 0
    assert multiplications(ConvNorm(16, 3, groups=16), "cuda") == 1
