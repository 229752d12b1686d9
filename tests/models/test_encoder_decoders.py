"""U-Net, SegNet and their relatives, LR-ASPP, KSAC: the invariants that their papers state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError, UnknownNameError
from jaxseg.layers.aspp import ASPP
from jaxseg.models import ksac, lraspp, residual_fcn, scnet_recon, segnet, segnet_basic, unet, unet_encoder
from jaxseg.models.ksac import KSAC


def initialized(model, image, seed=0):
    return jax.jit(lambda k: model.init(k, image, False))(jax.random.key(seed))


def logits(model, variables, image):
    return jax.jit(lambda v, x: model.apply(v, x, False)["logits"])(variables, image)


def shapes(model, size=(65, 65)):
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), image)
    return variables, jax.eval_shape(lambda v, x: model.apply(v, x, False), variables, image)


def noise(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def test_unet_sides_are_the_papers():
    assert unet.margin(4) == 92
    assert [unet.tile_side(n, 4) for n in (1, 4, 5, 388, 389)] == [188, 188, 204, 572, 588]
    _, outputs = shapes(unet.build(num_classes=2, mirror=False), (572, 572))
    sides = [568, 280, 136, 64, 28, 52, 100, 196, 388]
    names = ["encoder1", "encoder2", "encoder3", "encoder4", "bottom", "decoder4", "decoder3", "decoder2", "decoder1"]
    assert [outputs[name].shape[1] for name in names] == sides
    assert outputs["logits"].shape == (1, 388, 388, 2)
    for depth in (1, 2, 3):
        _, outputs = shapes(unet.build(num_classes=2, mirror=False, depth=depth), (unet.tile_side(9, depth),) * 2)
        assert outputs["logits"].shape[1] == unet.tile_side(9, depth) - 2 * unet.margin(depth) >= 9


def test_unet_tile_equals_the_centre_of_the_larger_tile():
    tile = unet.build(num_classes=2, width=4, depth=2, mirror=False)
    large = noise(1, 76, 84, 3)
    variables = initialized(tile, large)
    step = 4  # of two poolings: a shift by less changes which pixels are pooled together
    whole = logits(tile, variables, large)
    part = logits(tile, variables, large[:, 2 * step : 2 * step + 60, step : step + 72])
    rows, columns = part.shape[1:3]
    np.testing.assert_allclose(part, whole[:, 2 * step : 2 * step + rows, step : step + columns], atol=1e-5)


def test_unet_logits_of_an_image_are_those_of_its_mirrored_tile():
    options = {"num_classes": 2, "width": 4, "depth": 2}
    image = noise(1, 13, 17, 3)
    model = unet.build(**options)
    variables = initialized(model, image)
    border = unet.margin(2)
    pads = [(border, unet.tile_side(n, 2) - n - border) for n in (13, 17)]
    padded = jnp.asarray(np.pad(image, ((0, 0), *pads, (0, 0)), mode="reflect"))
    tile = logits(unet.build(**options, mirror=False), variables, padded)
    np.testing.assert_allclose(logits(model, variables, image), tile[:, :13, :17], atol=1e-6)


def test_unet_up_convolution_is_a_transposed_one():
    x, module = noise(2, 3, 4, 5), unet.UpConv(6)
    variables = module.init(jax.random.key(0), x)
    kernel = variables["params"]["kernel"]
    y = module.apply(variables, x)
    for i in (0, 1):
        for j in (0, 1):
            np.testing.assert_allclose(y[:, i::2, j::2], x @ kernel[i, j], atol=1e-5)


def test_unet_refuses():
    for wrong in ({"padding": "reflect"}, {"upsampling": "cubic"}, {"depth": 0}):
        with pytest.raises(JaxsegError, match="unet"):
            unet.build(num_classes=2, **wrong)
    with pytest.raises(JaxsegError, match="570 is none, 572 is"):
        shapes(unet.build(num_classes=2, mirror=False), (572, 570))


def test_unet_upsamplings_and_crops():
    for upsampling in ("bilinear", "nearest"):
        variables, outputs = shapes(unet.build(num_classes=2, width=4, depth=2, upsampling=upsampling), (9, 20))
        assert outputs["logits"].shape == (1, 9, 20, 2) and variables["params"]["up1"]["conv"]["kernel"].ndim == 4
    x = jnp.arange(5.0).reshape(5, 1, 1)
    np.testing.assert_array_equal(unet.centred(x, (2, 1))[:, 0, 0], [1, 2])
    np.testing.assert_array_equal(unet.centred(x, (8, 1))[:, 0, 0], [0, 0, 1, 2, 3, 4, 0, 0])


def test_segnet_remembers_sizes_that_ceil_pooling_forgets():
    _, outputs = shapes(segnet.build(num_classes=11), (360, 480))
    encoder = [outputs[f"encoder{i}"].shape[1:3] for i in range(1, 6)]
    assert encoder == [(180, 240), (90, 120), (45, 60), (23, 30), (12, 15)]
    decoder = [outputs[f"decoder{i}"].shape[1:3] for i in (5, 4, 3, 2, 1)]
    assert decoder == [(23, 30), (45, 60), (90, 120), (180, 240), (360, 480)]


def test_unpooling_by_indices_and_its_alternatives_differ():
    image, results = noise(1, 9, 11, 3), {}
    for unpooling in segnet.UNPOOLINGS:
        model = segnet.build(num_classes=2, encoder=((4,),), decoder=((4,),), unpooling=unpooling)
        variables = initialized(model, image)
        results[unpooling] = np.asarray(logits(model, variables, image))
    arrays = list(results.values())
    assert all(not np.allclose(a, b) for i, a in enumerate(arrays) for b in arrays[:i])


def test_segnet_basic_has_no_relu_in_its_decoder():
    image = noise(1, 9, 11, 3)
    model = segnet_basic.build(num_classes=2, width=4)
    outputs = jax.jit(lambda v: model.apply(v, image))(initialized(model, image))
    assert float(outputs["encoder4"].min()) >= 0 > float(outputs["decoder1"].min())


def test_stages_that_do_not_fit():
    with pytest.raises(JaxsegError, match="encoder stage 1 has 4 channels.*decoder stage 2.*8"):
        segnet.build(num_classes=2, encoder=((4,), (8,)), decoder=((8,), (4,)))
    with pytest.raises(JaxsegError, match="as many stages"):
        scnet_recon.build(num_classes=2, encoder=((4,), (8,)))
    with pytest.raises(JaxsegError, match="unpooling"):
        segnet_basic.build(num_classes=2, unpooling="cubic")


def test_scnet_has_one_convolution_a_decoder_stage():
    variables, _ = shapes(scnet_recon.build(num_classes=2))
    decoder = [name for name in variables["params"] if name.startswith("decoder")]
    assert sorted(decoder) == [f"decoder{i}_layer1" for i in range(1, 6)]


def test_residual_fcn_skips_are_switches():
    options = {"num_classes": 2, "width": 4, "simple_blocks": 1, "depths": (2, 1)}
    for short in (True, False):
        for long in (True, False):
            variables, outputs = shapes(residual_fcn.build(**options, short_skips=short, long_skips=long), (21, 34))
            names = {"/".join(k.key for k in p) for p, _ in jax.tree_util.tree_leaves_with_path(variables["params"])}
            assert any("shortcut" in name for name in names) == short
            assert any(name.startswith("skip") for name in names) == long
            assert outputs["logits"].shape == (1, 21, 34, 2)
    with pytest.raises(JaxsegError, match="depths"):
        residual_fcn.build(num_classes=2, depths=())


def test_residual_fcn_strides_are_the_papers():
    _, outputs = shapes(residual_fcn.build(num_classes=2, depths=(1, 1, 1, 1)), (128, 64))
    found = {name: value.shape[1:] for name, value in outputs.items() if name != "logits"}
    assert [found[f"down{i}"] for i in range(6)] == [
        (128, 64, 32),
        (64, 32, 32),
        (32, 16, 32),
        (16, 8, 128),
        (8, 4, 256),
        (4, 2, 512),
    ]
    assert found["across"] == (4, 2, 1024) and found["up5"] == (8, 4, 512) and found["up1"] == (128, 64, 32)


def test_unet_encoder_repeats_pixels():
    x = jnp.arange(6.0).reshape(2, 3, 1)
    np.testing.assert_array_equal(
        unet_encoder.repeated(x, (3, 5))[..., 0], [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]
    )
    assert unet_encoder.repeated(x, (5, 7)).shape == (5, 7, 1)
    with pytest.raises(JaxsegError, match="decoder_channels"):
        unet_encoder.build(num_classes=2, decoder_channels=(8, 8))
    with pytest.raises(UnknownNameError, match="resnet34"):
        unet_encoder.build(num_classes=2, backbone="resnet35")


def test_ksac_is_an_aspp_whose_kernels_are_one():
    x, rates = noise(2, 9, 10, 6), (1, 2, 3)
    shared = KSAC(4, rates, dropout_rate=0.0)
    variables = jax.jit(lambda k: shared.init(k, x, False))(jax.random.key(0))
    aspp, kernel = {}, variables["params"]["kernel"]
    for collection, tree in variables.items():
        aspp[collection] = {k: v for k, v in tree.items() if k != "kernel" and not k.startswith("atrous")}
        for i in (1, 2, 3):
            aspp[collection][f"atrous{i}"] = {"norm": tree[f"atrous{i}_norm"]}
            if collection == "params":
                aspp[collection][f"atrous{i}"]["conv"] = {"kernel": kernel}
    expected = jax.jit(lambda v: ASPP(4, rates, dropout_rate=0.0).apply(v, x, False))(aspp)
    np.testing.assert_allclose(jax.jit(lambda v: shared.apply(v, x, False))(variables), expected, atol=1e-5)


def branches(rates):
    variables = jax.eval_shape(
        lambda x: KSAC(256, rates, "sum").init(jax.random.key(0), x, False),
        jax.ShapeDtypeStruct((1, 5, 5, 2048), jnp.float32),
    )
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_ksac_branches_have_one_kernel_whatever_the_rates():
    assert branches((6, 12, 18)) == 5_769_728
    assert branches((6, 12, 18, 24)) == 5_769_728 + 2 * 256


def test_ksac_gradient_of_the_kernel_is_the_sum_over_the_branches():
    x = noise(1, 5, 6, 2)

    def gradient(rates):
        module = KSAC(2, rates, "sum", dropout_rate=0.0)
        variables = jax.jit(lambda k: module.init(k, x, False))(jax.random.key(0))
        loss = jax.jit(jax.grad(lambda p: jnp.sum(module.apply({**variables, "params": p}, x, False))))
        return loss(variables["params"])

    both = gradient((1, 2))["kernel"]
    np.testing.assert_allclose(both, gradient((1,))["kernel"] + gradient((2,))["kernel"], atol=1e-4)


def test_ksac_rates_follow_the_output_stride():
    narrow = {"num_classes": 2, "backbone": "mobilenet_v2"}
    assert [ksac.build(**narrow, output_stride=s).aspp.rates for s in (16, 8)] == [(6, 12, 18), (12, 24, 36)]
    with pytest.raises(JaxsegError, match="fuse"):
        ksac.build(**narrow, fuse="product")


def test_lraspp_taps():
    _, outputs = shapes(lraspp.build(num_classes=21))
    assert outputs["low_logits"].shape == (1, 9, 9, 21) and outputs["gated"].shape == (1, 9, 9, 128)
    with pytest.raises(UnknownNameError, match="low_level"):
        shapes(lraspp.build(num_classes=21, backbone="mobilenet_v3_small", low_level="c9"))
    with pytest.raises(JaxsegError, match="output_stride"):
        lraspp.build(num_classes=21, output_stride=4)
