"""PSPNet: the variant's options, each where its effect can be computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.layers.pyramid_pooling import PyramidPooling
from jaxseg.models import pspnet

TINY = {"backbone": "resnet18", "pyramid_channels": 2, "fusion_channels": 8}
TINY |= {"backbone_options": {"width": 4, "stop_at_output_stride": True}}


@pytest.mark.parametrize("whole", [False, True])
def test_dropout_takes_values_or_whole_channels(whole):
    module = pspnet.build(num_classes=8, dropout_rate=0.5, channel_dropout=whole, **TINY)
    image = jax.random.normal(jax.random.key(0), (3, 48, 40, 3))
    variables = jax.jit(functools.partial(module.init, train=False))(jax.random.key(1), image)
    # What is classified is what dropout leaves.
    variables["params"]["classifier"] = {"kernel": jnp.eye(8)[None, None], "bias": jnp.zeros(8)}
    key = {"dropout": jax.random.key(2)}
    outputs, _ = jax.jit(lambda v, x: module.apply(v, x, True, rngs=key, mutable=["batch_stats"]))(variables, image)
    fused, left = np.asarray(outputs["fusion"]), np.asarray(outputs["low_logits"])
    dropped = (left == 0) & (fused > 0)
    np.testing.assert_allclose(left[~dropped], 2 * fused[~dropped], rtol=1e-5)
    assert dropped.any() and (left > 0).any()
    for image_of, channels in zip(fused, dropped, strict=True):
        for c in range(8):
            seen = channels[..., c][image_of[..., c] > 0]
            if whole:
                assert seen.all() or not seen.any()
    if not whole:
        shares = dropped.sum((1, 2)) / np.maximum((fused > 0).sum((1, 2)), 1)
        assert ((shares > 0) & (shares < 1)).any()


def test_the_level_of_one_bin_without_batch_norm():
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3)) + 1
    module = PyramidPooling(2, (1, 2), single_bin_norm=False)
    variables = module.init(jax.random.key(1), x, True)
    assert set(variables["params"]["level1"]) == {"kernel", "bias"} and set(variables["batch_stats"]) == {"level2"}
    level = variables["params"]["level1"] | {"bias": jnp.asarray([0.3, -9.0])}
    variables["params"]["level1"] = level
    found = module.apply(variables, x, False)[..., 3:5]
    expected = np.maximum(np.mean(x, (1, 2)) @ level["kernel"][0, 0] + level["bias"], 0)
    np.testing.assert_allclose(found, np.broadcast_to(expected[:, None, None], found.shape), rtol=1e-5)
    assert (expected[:, 0] > 0).any() and (expected[:, 1] == 0).all()


@pytest.mark.parametrize("option", ["fusion_kernel_size", "classifier_kernel_size"])
def test_even_kernels_are_refused(option):
    with pytest.raises(JaxsegError, match="must be odd"):
        pspnet.build(num_classes=2, **TINY, **{option: 2})
