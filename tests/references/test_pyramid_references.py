"""FC-DenseNet, PSPNet, GCN, RefineNet and UPerNet against twins in PyTorch, written from the papers' layer tables.

The twins' modules carry our names. Random weights and running statistics, float32, odd sizes.
"""

import importlib

import jax
import numpy as np
import pytest

from jaxseg.models import gcn, pspnet, refinenet, tiramisu, upernet
from tests.references.record import record_difference
from tests.references.torch_variables import randomize, relative_difference, template_of, to_variables

torch = pytest.importorskip("torch")
torch_tiramisu = importlib.import_module("tests.references.torch_tiramisu")
t = importlib.import_module("tests.references.torch_pyramids")
CLASSES, WIDTH = 5, 8
TWIN = f"PyTorch {torch.__version__} twin from the layer table"
RULES = [(r"\.", "/")]


def picture(height=61, width=75):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def compare(name, module, network, image, taps=("logits",)):
    """The outputs at `taps` are the twin's, a tensor or a tuple of them."""
    variables = to_variables(network.state_dict(), RULES, template_of(module))
    with torch.no_grad():
        theirs = network(image)
    ours = jax.jit(lambda v, x: module.apply(v, x, False))(variables, np.moveaxis(image.numpy(), 1, -1))
    for tap, value in zip(taps, theirs if isinstance(theirs, tuple) else (theirs,), strict=True):
        difference = relative_difference(ours[tap], value)
        record_difference(f"model {name}" + (f" {tap}" if tap != "logits" else ""), TWIN, difference)
        assert difference < 1e-4


@pytest.mark.parametrize("layers, growth_rate", [((4,) * 11, 4), ((1, 2, 3, 2, 1), 8)])
def test_tiramisu(layers, growth_rate):
    torch.manual_seed(0)
    options = {"num_classes": CLASSES, "layers": layers, "growth_rate": growth_rate, "first_channels": WIDTH}
    network = randomize(torch_tiramisu.build(**options))
    compare(f"tiramisu {len(layers)} blocks", tiramisu.build(**options), network, picture())


@pytest.mark.parametrize("depth, count", [(56, 1_376_795), (67, 3_463_243), (103, 9_322_091)])
def test_tiramisu_of_full_width_has_the_published_parameters(depth, count):
    layers, growth_rate = tiramisu.PUBLISHED[depth]
    network = torch_tiramisu.build(num_classes=11, layers=layers, growth_rate=growth_rate)
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    to_variables(network.state_dict(), RULES, template_of(tiramisu.build(num_classes=11, depth=depth)))


BACKBONE = {"num_classes": CLASSES, "backbone": "resnet50", "backbone_options": {"width": WIDTH}}


def test_pspnet():
    torch.manual_seed(0)
    module = pspnet.build(pyramid_channels=6, fusion_channels=12, aux_tap="stage3", aux_channels=6, **BACKBONE)
    compare("pspnet", module, randomize(t.PSPNet(CLASSES, WIDTH, 6)), picture(), ("logits", "aux/backbone"))


def test_upernet():
    torch.manual_seed(0)
    module = upernet.build(pyramid_channels=10, fpn_channels=10, **BACKBONE)
    compare("upernet", module, randomize(t.UPerNet(CLASSES, WIDTH, 10)), picture())


@pytest.mark.parametrize("kernel_size", [7, 15])
def test_gcn(kernel_size):
    torch.manual_seed(0)
    module = gcn.build(kernel_size=kernel_size, **BACKBONE)
    compare(f"gcn k{kernel_size}", module, randomize(t.GCN(CLASSES, WIDTH, kernel_size)), picture())


@pytest.mark.parametrize(
    "links, order, units",
    [(2, "pool_conv", (3, 1, 1, 1)), (4, "pool_conv", (3, 3, 3, 3)), (4, "conv_pool", (1, 1, 1, 1))],
)
def test_refinenet(links, order, units):
    torch.manual_seed(0)
    options = {"features": (10, 10, 10, 20), "crp_blocks": links, "crp_order": order, "output_units": units}
    module = refinenet.build(**options, **BACKBONE)
    network = randomize(t.RefineNet(CLASSES, WIDTH, 10, links, order == "conv_pool", units))
    compare(f"refinenet {links} poolings, {order}", module, network, picture())
