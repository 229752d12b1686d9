"""The dilated networks of the VGG era: published sizes and borders, initial values, options, fusion of scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.models import deeplab_v1, deeplab_v2, dilation

NARROW = {"num_classes": 3, "backbone_options": {"width": 2}, "fc_channels": 4}


def shapes(module, *size):
    """Heights and widths of every tap for an image of a size."""
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    outputs = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, False)[0], image)
    return {name: value.shape[1:3] for name, value in outputs.items() if not name.startswith("coarse/")}


def test_trace_of_the_front_end():
    # 520 pixels and the last sample to mix with: the published tile of 900.
    found = shapes(dilation.build(**NARROW), 520, 513)
    sides = {
        "stage1": 896,
        "pool1": 448,
        "stage2": 444,
        "pool2": 222,
        "stage3": 216,
        "pool3": 108,
        "stage4": 102,
        "stage5": 90,
    }
    assert {name: found[f"backbone/{name}"] for name in sides} == {name: (n, n) for name, n in sides.items()}
    assert found["fc7"] == found["front_end"] == found["low_logits"] == (66, 66)
    assert found["logits"] == (520, 513)
    assert shapes(dilation.build(**NARROW, upsampling="deconvolution"), 528, 521)["fc7"] == (66, 66)


@pytest.mark.parametrize("layers", [7, 8, 10])
@pytest.mark.parametrize("kind", ["basic", "large"])
def test_the_context_starts_as_the_identity(layers, kind):
    if (layers, kind) in ((7, "large"), (10, "large")):
        with pytest.raises(JaxsegError, match="context_layers"):
            dilation.build(**NARROW, context=kind, context_layers=layers)
        return
    module = dilation.build(**NARROW, context=kind, context_layers=layers, context_noise=0.0).context
    x = jax.random.uniform(jax.random.key(0), (1, 9, 7, 3))
    y, v = jax.jit(module.init_with_output)(jax.random.key(1), x)
    np.testing.assert_allclose(y, x, rtol=1e-5)
    assert all((leaf["bias"] == 0).all() for leaf in v["params"].values())


def test_the_identitys_noise_has_its_deviation():
    kernel = dilation.identity_kernel(4, 0.01)(jax.random.key(0), (3, 3, 16, 128))
    centre = np.asarray(kernel[1, 1])
    a, b = np.arange(16) // 4, np.arange(128) // 32
    same = a[:, None] == b
    np.testing.assert_allclose(centre[same], 4 / 128)
    assert np.std(np.asarray(kernel[0])) == pytest.approx(0.01 * 4 / 128, rel=0.05)
    assert np.std(centre[~same]) == pytest.approx(0.01 * 4 / 128, rel=0.1)


def reach(context):
    """Rows that a score of the middle depends on."""
    x = jnp.ones((1, 161, 5, 3))
    v = jax.jit(context.init)(jax.random.key(0), x)
    v = jax.tree.map(jnp.abs, v)
    g = jax.jit(jax.grad(lambda x: context.apply(v, x)[0, 80, 2].sum()))(x)
    return int((np.abs(g).sum((0, 2, 3)) > 0).sum())


def test_the_receptive_field_of_eight_layers_is_67():
    assert reach(dilation.build(**NARROW).context) == 67
    assert reach(dilation.build(**NARROW, context_layers=7).context) == 35


def test_padding_first_differs_at_the_border_alone():
    per_layer, first = (
        dilation.build(**NARROW, context_padding=p, context_noise=0.5).context for p in ("per_layer", "first")
    )
    x = jax.random.normal(jax.random.key(0), (1, 75, 75, 3))
    v = jax.tree.map(lambda leaf: leaf + 0.1, jax.jit(per_layer.init)(jax.random.key(1), x))
    a, b = (np.asarray(jax.jit(m.apply)(v, x)) for m in (per_layer, first))
    # The 33 rates' sum from each border, only the middle sees no padding at all.
    np.testing.assert_allclose(a[:, 33:42, 33:42], b[:, 33:42, 33:42], rtol=1e-4)
    assert not np.allclose(a[:, 0], b[:, 0], rtol=1e-2)


def test_probabilities_are_what_is_enlarged():
    module = dilation.build(**NARROW, context="none")
    v = jax.jit(lambda k: module.init(k, jnp.zeros((1, 9, 9, 3)), False))(jax.random.key(0))
    v["params"]["classifier"]["kernel"] *= 1e4
    x = 10 * jax.random.normal(jax.random.key(1), (1, 25, 17, 3))
    outputs = jax.jit(lambda v, x: module.apply(v, x, False))(v, x)
    coarse = np.asarray(jax.nn.softmax(outputs["low_logits"]))
    fine = np.exp(outputs["logits"])
    np.testing.assert_allclose(fine.sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(fine[:, ::8, ::8], coarse[:, :4, :3], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(fine[:, 4, 0], coarse[:, :2, 0].mean(1), rtol=1e-4, atol=1e-6)


def test_what_underflows_keeps_its_value_and_gradient():
    x = jnp.asarray([[0.0, -200.0], [0.0, -200.0]])[:, None].repeat(2, 1)
    value, gradient = jax.value_and_grad(lambda x: dilation.enlarged_probabilities(x, (8, 8))[4, 4, 1])(x)
    assert value == pytest.approx(-200)
    np.testing.assert_allclose(gradient, np.stack([np.zeros((2, 2)), np.full((2, 2), 0.25)], -1), rtol=1e-5)


@pytest.mark.parametrize("module", [deeplab_v1, deeplab_v2])
def test_321_pixels_become_41(module):
    options = NARROW if module is deeplab_v1 else NARROW | {"backbone": "resnet18"}
    found = shapes(module.build(**options), 321, 321)
    names = ("pool1", "pool2", "pool3") if module is deeplab_v1 else ("s2", "stem_pool", "s8")
    assert [found[f"backbone/{name}"][0] for name in names] == [161, 81, 41]
    assert found["low_logits"] == (41, 41) and found["logits"] == (321, 321)


def test_rates_follow_the_output_stride():
    assert deeplab_v1.build(**NARROW).fc.dilation == 12
    assert deeplab_v1.build(**NARROW, output_stride=16).fc.dilation == 6
    assert deeplab_v1.build(**NARROW, variant="4x4", atrous_rate=8).fc.dilation == 8
    assert deeplab_v2.build(num_classes=3).aspp.rates == (6, 12, 18, 24)
    assert deeplab_v2.build(num_classes=3, output_stride=16).aspp.rates == (3, 6, 9, 12)


def test_the_scales_maximum_and_their_losses():
    options = {"num_classes": 3, "backbone": "resnet18", "backbone_options": {"width": 2}, "aspp_rates": (6,)}
    one, three = (deeplab_v2.build(**options, scales=s) for s in ((1.0,), (1.0, 0.75, 0.5)))
    x = jax.random.normal(jax.random.key(0), (1, 33, 41, 3))
    v = jax.jit(lambda k: three.init(k, x, False))(jax.random.key(1))
    fused = jax.jit(lambda v, x: three.apply(v, x, False))(v, x)
    single = jax.jit(lambda v, x: one.apply(v, x, False))(v, x)
    heads = {name: value for name, value in fused.items() if name.startswith("aux/")}
    assert set(heads) == {"aux/scale100", "aux/scale75", "aux/scale50"}
    assert not any(name.startswith("aux/") for name in single)
    np.testing.assert_allclose(heads["aux/scale100"], single["logits"], rtol=1e-5, atol=1e-6)
    # On the samples of the coarse map the fused score is at least each scale's own.
    assert (fused["low_logits"] >= single["low_logits"] - 1e-6).all()
    assert (fused["low_logits"] > single["low_logits"] + 1e-4).any()
    assert deeplab_v2.shrunk(321, 0.75, "align_corners") == 241 and deeplab_v2.shrunk(321, 0.5, "align_corners") == 161
    assert deeplab_v2.shrunk(321, 0.75, "half_pixel") == 240 and deeplab_v2.shrunk(1, 0.5, "half_pixel") == 1


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (dilation, {"context": "huge"}, "context"),
        (dilation, {"context_layers": 9}, "context_layers"),
        (dilation, {"context_padding": "last"}, "context_padding"),
        (dilation, {"upsampling": "nearest"}, "upsampling"),
        (deeplab_v1, {"variant": "5x5"}, "variant"),
        (deeplab_v1, {"output_stride": 4}, "output_stride"),
        (deeplab_v1, {"atrous_rate": 5, "output_stride": 16}, "rates"),
        (deeplab_v2, {"output_stride": 7}, "output_stride"),
        (deeplab_v2, {"alignment": "corners"}, "alignment"),
        (deeplab_v2, {"aspp_rates": ()}, "aspp_rates"),
        (deeplab_v2, {"scales": (0.5, 1.0)}, "scales"),
        (deeplab_v2, {"scales": ()}, "scales"),
    ],
)
def test_what_they_refuse(module, options, message):
    with pytest.raises(JaxsegError, match=message):
        module.build(num_classes=3, **options)
