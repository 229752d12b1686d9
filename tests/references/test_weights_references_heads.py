"""Whole networks of torchvision and segmentation_models_pytorch through a saved file, their table and our module.

Random weights and running statistics, float32; odd sizes where the other side takes them. Networks of
segmentation_models_pytorch other than Unet refuse sizes that their output stride does not divide.
"""

import functools
import re

import jax
import numpy as np
import pytest

from jaxseg.models import deeplab_v3, deeplab_v3plus, fcn_resnet, lraspp, pspnet, unet_encoder, upernet
from jaxseg.weights.load import load_weights
from tests.references.record import record_difference
from tests.references.torch_variables import randomize, relative_difference, template_of

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

ODD, DIVISIBLE = (61, 75), (96, 64)
SMP_DEEPLAB_V3 = {"head_convolution": True, "dropout_rate": 0.5, "backbone_options": {"dilate_first_unit": True}}
SMP_DEEPLAB_V3PLUS = {"separable": True, "depthwise_norm": False, "dropout_rate": 0.5}
SMP_DEEPLAB_V3PLUS |= {"encoder_convolutions": 1, "decoder_convolutions": 1}
SMP_DEEPLAB_V3PLUS |= {"backbone_options": {"dilate_first_unit": True}}
SMP_UPERNET = {"pyramid_channels": 256, "fpn_channels": 256, "feature_norm": True, "pool_resize_first": False}
SMP_UPERNET |= {"logits_alignment": "align_corners", "backbone_options": {"stem": "conv7"}}
SMP_PSPNET = {"single_bin_norm": False, "fusion_kernel_size": 1, "classifier_kernel_size": 3, "channel_dropout": True}
SMP_PSPNET |= {"dropout_rate": 0.2, "backbone_options": {"stem": "conv7", "stop_at_output_stride": True}}
MOBILENET_V2 = {"padding": "torch", "norm_epsilon": 1e-5, "last_convolution": True}


@pytest.fixture
def silent(caplog):
    """The options of a network that is loaded are those that the weights expect."""
    yield
    assert not caplog.records


@pytest.fixture(scope="module")
def smp():
    return pytest.importorskip("segmentation_models_pytorch")


def load(tmp_path, theirs, module, table, **options):
    """Saves PyTorch's network and loads the file into our variables."""
    torch.save(theirs.state_dict(), tmp_path / "network.pth")
    return load_weights(tmp_path / "network.pth", template_of(module), table=table, network=module, **options)


def agree(tmp_path, name, reference, theirs, module, table, size=ODD, taps=("logits",)):
    """The outputs at `taps` are PyTorch's, a tensor or a tuple of them."""
    variables = load(tmp_path, randomize(theirs), module, table)
    image = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 1))))
    expected = tuple(expected.values()) if isinstance(expected, dict) else (expected,)
    forward = jax.jit(functools.partial(module.apply, train=False))
    ours = forward(variables, image)
    assert len(taps) == len(expected)
    for tap, value in zip(taps, expected, strict=True):
        difference = relative_difference(ours[tap], value)
        record_difference(f"weights, {name} {tap}", reference, difference)
        assert difference < 1e-4


def torchvision_network(name, **options):
    build = getattr(torchvision.models.segmentation, name)
    return build(weights=None, weights_backbone=None, num_classes=21, **options)


def test_lraspp(tmp_path, silent):
    theirs = torchvision_network("lraspp_mobilenet_v3_large")
    reference = f"torchvision {torchvision.__version__} lraspp_mobilenet_v3_large"
    agree(tmp_path, "lraspp", reference, theirs, lraspp.build(num_classes=21), "torchvision_lraspp")


def test_fcn_resnet(tmp_path, silent):
    theirs = torchvision_network("fcn_resnet50", aux_loss=True)
    module = fcn_resnet.build(num_classes=21, aux_tap="stage3")
    reference = f"torchvision {torchvision.__version__} fcn_resnet50"
    taps = ("logits", "aux/backbone")
    agree(tmp_path, "fcn_resnet50", reference, theirs, module, "torchvision_fcn_resnet", taps=taps)
    # The same file into a network without the auxiliary head.
    load_weights(
        tmp_path / "network.pth", template_of(fcn_resnet.build(num_classes=21)), table="torchvision_fcn_resnet"
    )


@pytest.mark.parametrize("encoder", ["resnet18", "resnet50", "mobilenet_v2"])
def test_smp_unet(encoder, smp, tmp_path, silent):
    theirs = smp.Unet(encoder, encoder_weights=None, classes=4)
    mobile = encoder == "mobilenet_v2"
    options = {"backbone_options": MOBILENET_V2} if mobile else {}
    module = unet_encoder.build(num_classes=4, backbone=encoder, **options)
    table = "smp_unet_mobilenet_v2" if mobile else "smp_unet"
    reference = f"segmentation_models_pytorch {smp.__version__} Unet {encoder}"
    agree(tmp_path, f"unet_encoder {encoder}", reference, theirs, module, table)


@pytest.mark.parametrize("stride, encoder", [(8, "resnet18"), (16, "resnet50")])
def test_smp_deeplab_v3(stride, encoder, smp, tmp_path, silent):
    theirs = smp.DeepLabV3(encoder, encoder_weights=None, encoder_output_stride=stride, classes=4)
    rates = (6, 12, 18) if stride == 8 else (12, 24, 36)
    options = SMP_DEEPLAB_V3 | {"output_stride": stride, "aspp_rates": rates, "alignment": "align_corners"}
    module = deeplab_v3.build(num_classes=4, backbone=encoder, **options)
    reference = f"segmentation_models_pytorch {smp.__version__} DeepLabV3 {encoder}, stride {stride}"
    agree(tmp_path, f"deeplab_v3 {encoder}", reference, theirs, module, "smp_deeplab_v3", DIVISIBLE)


def over(encoder, table, options, **mobile):
    """The table and the network's options for an encoder of segmentation_models_pytorch."""
    if encoder != "mobilenet_v2":
        return table, options | {"backbone": encoder}
    return f"{table}_mobilenet_v2", options | {"backbone": encoder, "backbone_options": MOBILENET_V2 | mobile}


@pytest.mark.parametrize(
    "stride, encoder", [(8, "resnet50"), (16, "resnet34"), (16, "mobilenet_v2"), (8, "mobilenet_v2")]
)
def test_smp_deeplab_v3plus(stride, encoder, smp, tmp_path, silent):
    theirs = smp.DeepLabV3Plus(encoder, encoder_weights=None, encoder_output_stride=stride, classes=4)
    rates = (6, 12, 18) if stride == 8 else (12, 24, 36)
    table, options = over(encoder, "smp_deeplab_v3plus", SMP_DEEPLAB_V3PLUS, dilate_first_unit=True)
    module = deeplab_v3plus.build(num_classes=4, output_stride=stride, **(options | {"aspp_rates": rates}))
    reference = f"segmentation_models_pytorch {smp.__version__} DeepLabV3Plus {encoder}, stride {stride}"
    agree(tmp_path, f"deeplab_v3plus {encoder}", reference, theirs, module, table, DIVISIBLE)


@pytest.mark.parametrize("encoder, channels", [("resnet18", 32), ("resnet50", 128), ("mobilenet_v2", 8)])
def test_smp_pspnet(encoder, channels, smp, tmp_path, silent):
    theirs = smp.PSPNet(encoder, encoder_weights=None, classes=4)
    changes = {"last_convolution": False, "stop_at_output_stride": True}
    table, options = over(encoder, "smp_pspnet", SMP_PSPNET, **changes)
    module = pspnet.build(num_classes=4, pyramid_channels=channels, **options)
    reference = f"segmentation_models_pytorch {smp.__version__} PSPNet {encoder}"
    agree(tmp_path, f"pspnet {encoder}", reference, theirs, module, table, (72, 104))


@pytest.mark.parametrize("encoder", ["resnet18", "resnet50", "mobilenet_v2"])
def test_smp_upernet(encoder, smp, tmp_path, silent):
    theirs = smp.UPerNet(encoder, encoder_weights=None, classes=4)
    for norm in theirs.decoder.feature_norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.uniform_(norm.bias, -0.3, 0.3)
    table, options = over(encoder, "smp_upernet", SMP_UPERNET)
    module = upernet.build(num_classes=4, **options)
    reference = f"segmentation_models_pytorch {smp.__version__} UPerNet {encoder}"
    agree(tmp_path, f"upernet {encoder}", reference, theirs, module, table, DIVISIBLE)


def test_names_and_shapes_of_others(smp, tmp_path, silent):
    """Deeper networks of the same kinds: every array finds its place."""
    fcn = torchvision_network("fcn_resnet101", aux_loss=True)
    load(
        tmp_path,
        fcn,
        fcn_resnet.build(num_classes=21, backbone="resnet101", aux_tap="stage3"),
        "torchvision_fcn_resnet",
    )
    unet = smp.Unet("resnet34", encoder_weights=None, classes=4, aux_params={"classes": 3})
    load(tmp_path, unet, unet_encoder.build(num_classes=4, backbone="resnet34"), "smp_unet")


def test_the_addresses_are_those_of_the_installed_torchvision():
    from jaxseg.weights.catalog import CATALOG

    segmentation = torchvision.models.segmentation
    found = 0
    for name, entry in CATALOG.items():
        match = re.fullmatch(r"torchvision/((?:fcn|lraspp|deeplabv3)_.*)\.(\w+)", name)
        if match:
            weights = torchvision.models.get_model_weights(getattr(segmentation, match[1]))[match[2]]
            assert entry.url == weights.url
            found += 1
    assert found == 6
