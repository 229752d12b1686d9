"""The stored logits of tests/goldens are those that PyTorch gives; JAXSEG_WRITE_GOLDENS=1 writes them anew.

The weights follow from our names, so they are carried to PyTorch's: its arrays are numbered, the conversion that the
parity tests check moves the numbers, and where a number comes out its weight goes in.
"""

import importlib
import os
import re

import jax
import numpy as np
import pytest

from jaxseg.core.names import resolve
from tests.goldens.networks import CLASSES, FILE, NETWORKS, image_of, module_of, sample, variables_of
from tests.references.record import record_difference
from tests.references.torch_variables import to_variables

torch = pytest.importorskip("torch")
dilated = importlib.import_module("tests.references.test_dilated_references")
encoders = importlib.import_module("tests.references.test_encoder_decoder_references")
fcns = importlib.import_module("tests.references.test_fcn_references")
pyramids = importlib.import_module("tests.references.torch_pyramids")
tiramisu = importlib.import_module("tests.references.torch_tiramisu")
ResNet = importlib.import_module("tests.references.torch_resnet").ResNet
nn, F = torch.nn, torch.nn.functional

SAME_NAMES = [(r"\.", "/")]
ASPP = {"0.0": "conv1x1/conv", "0.1": "conv1x1/norm", "4.1": "image_pooling/conv", "4.2": "image_pooling/norm"}
ASPP |= {f"{i}.{j}": f"atrous{i}/{kind}" for i in (1, 2, 3) for j, kind in enumerate(("conv", "norm"))}


def written(network, variables, place):
    """The network with our variables; `place` turns its state, numbered, into a tree like ours."""
    state, start, numbers = network.state_dict(), 0, {}
    for name, tensor in state.items():
        numbers[name] = torch.arange(start, start + tensor.numel(), dtype=torch.int32).reshape(tensor.shape)
        start += tensor.numel()
    flat, found = np.zeros(start, np.float32), np.zeros(start, bool)
    for places, leaf in zip(jax.tree.leaves(place(numbers)), jax.tree.leaves(variables), strict=True):
        flat[np.asarray(places)], found[np.asarray(places)] = leaf, True
    for name, tensor in state.items():
        if found[numbers[name].numpy()].all() and tensor.numel():
            tensor.copy_(torch.from_numpy(flat[numbers[name].numpy()]))
    return network.eval()


def by_names(rules, **options):
    """A conversion by rules for names."""
    return lambda template: lambda numbers: to_variables(numbers, rules, template, **options)


def by_table(name):
    """A conversion by a table of jaxseg.weights."""

    def place(template):
        flat, tree = jax.tree_util.tree_flatten_with_path(template)
        names = ["/".join(key.key for key in path) for path, _ in flat]
        sources = [resolve("weights.tables", name, "TABLE")(names)[n] for n in names]

        def from_numbers(numbers):
            arrays = [(numbers[source.name].numpy(), source.hook) for source in sources]
            return jax.tree.unflatten(tree, [a if hook is None else hook(a) for a, hook in arrays])

        return from_numbers

    return place


class OverResNet(nn.Module):
    """torchvision's head on the dilated twin of a ResNet-18 of width 8."""

    def __init__(self, head):
        super().__init__()
        self.backbone, self.classifier = ResNet(8, depth=18, dilated=True), head

    def forward(self, image):
        return pyramids.resized(self.classifier(self.backbone(image)[3]), image, False)


def fcn_resnet():
    torchvision = pytest.importorskip("torchvision")
    parts = {"0": "conv/conv", "1": "conv/norm", "4": "classifier"}
    head = (r"^classifier\.(\d)$", lambda match: f"head/{parts[match[1]]}")
    network = OverResNet(torchvision.models.segmentation.fcn.FCNHead(64, CLASSES))
    return network, network, by_names([head, *SAME_NAMES])


def deeplab_v3():
    torchvision = pytest.importorskip("torchvision")
    network = OverResNet(torchvision.models.segmentation.deeplabv3.DeepLabHead(64, CLASSES, (12, 24, 36)))
    parts = {"1": "head/conv", "2": "head/norm", "4": "classifier"}
    rules = [
        (r"^classifier\.0\.convs\.(\d\.\d)$", lambda match: f"aspp/{ASPP[match[1]]}"),
        (r"^classifier\.0\.project\.0$", "aspp/project/conv"),
        (r"^classifier\.0\.project\.1$", "aspp/project/norm"),
        (r"^classifier\.(\d)$", lambda match: parts[match[1]]),
        *SAME_NAMES,
    ]
    # Image pooling stands first in our order, last in theirs.
    first = (r"params/aspp/project/conv/kernel", lambda kernel: np.roll(kernel, kernel.shape[3], axis=2))
    return network, network, by_names(rules, hooks=[first])


def unet(same):
    network = encoders.UNetTwin(CLASSES, 4, same)
    names = {0: "conv1", 1: "norm1", 3: "conv2", 4: "norm2"} if same else {0: "conv1", 2: "conv2"}
    rules = [
        (r"^encoder\.4\.(\d)$", lambda match: f"bottom/{names[int(match[1])]}"),
        (r"^(encoder|decoder)\.(\d)\.(\d)$", lambda m: f"{m[1]}{int(m[2]) + 1}/{names[int(m[3])]}"),
        (r"^up\.(\d)$", lambda match: f"up{int(match[1]) + 1}"),
    ]

    def forward(image):
        if same:
            return network(image)
        # The smallest tile whose valid convolutions leave as many pixels: 236 leave 52.
        pads = [(0, 0), (0, 0), *((92, 236 - 92 - n) for n in image.shape[2:])]
        tile = torch.from_numpy(np.pad(image.numpy(), pads, mode="reflect"))
        return network(tile)[:, :, : image.shape[2], : image.shape[3]]

    return network, forward, by_names(rules, hooks=[encoders.transposed_conv(r"params/up\d/kernel")])


def segnet(basic):
    options = NETWORKS["segnet"][1]
    sides = (((8,),) * 4, ((8,),) * 4, 7) if basic else (options["encoder"], options["decoder"], 3)
    network, stages = encoders.SegNetTwin(CLASSES, *sides, basic), len(sides[0])
    rules = [
        (r"^encoder\.(\d)\.(\d)\.", lambda m: f"encoder{int(m[1]) + 1}_layer{int(m[2]) + 1}/"),
        (r"^decoder\.(\d)\.(\d)\.", lambda m: f"decoder{stages - int(m[1])}_layer{int(m[2]) + 1}/"),
        (r"/0$", "/conv"),
        (r"/1$", "/norm"),
    ]
    return network, network, by_names(rules)


def lraspp():
    network, rules, _ = encoders.lraspp_of_torchvision(CLASSES)
    return network, lambda image: network(image)["out"], by_names(rules)


def smp(kind, table, **options):
    library = pytest.importorskip("segmentation_models_pytorch")
    network = getattr(library, kind)("mobilenet_v2", encoder_weights=None, classes=CLASSES, **options)
    return network, network, by_table(table)


def dilation():
    network = dilated.DilationTwin((1, 1, 2, 4, 8, 16, 32, 64, 1), (1,) * 9, False)
    hat = 1 - (torch.arange(16) - 7.5).abs() / 8
    kernel = (hat[:, None] * hat).expand(CLASSES, 1, 16, 16)

    def forward(image):
        low = network(dilated.mirrored(image, [n // 8 for n in image.shape[2:]]))
        return F.conv_transpose2d(low, kernel, stride=8, padding=4, groups=CLASSES)

    return network, forward, by_names(SAME_NAMES)


def twin(network, rules=SAME_NAMES, output=lambda found: found):
    return network, lambda image: output(network(image)), by_names(rules)


def peer(name):
    """PyTorch's network of a golden, its forward pass, and the conversion of its state."""
    of_fcn = [(r"^conv(\d)_(\d)$", r"backbone/stage\1/conv\2"), (r"^conv(\d)$", r"backbone/conv\1")]
    of_fcn += [(r"^(fc\d)$", r"head/\1")]
    scales = ("image", "pool1", "pool2", "pool3", "pool4")
    layers = NETWORKS["tiramisu"][1]
    makers = {
        "fcn 8s": lambda: twin(fcns.Twin(CLASSES), of_fcn),
        "fcn alexnet": lambda: twin(fcns.AlexNetTwin(CLASSES), of_fcn),
        "fcn_resnet": fcn_resnet,
        "unet": lambda: unet(False),
        "unet same": lambda: unet(True),
        "unet_encoder": lambda: smp("Unet", "smp_unet_mobilenet_v2"),
        "segnet": lambda: segnet(False),
        "segnet_basic": lambda: segnet(True),
        "tiramisu": lambda: twin(tiramisu.build(num_classes=CLASSES, **layers)),
        "dilation": dilation,
        "deeplab_v1": lambda: twin(dilated.DeepLabV1Twin(3, 12, True, scales)),
        "deeplab_v2": lambda: twin(dilated.DeepLabV2Twin(dilated.small_pools(), 64, (6, 12, 18, 24), True, (), True)),
        "deeplab_v3": deeplab_v3,
        "deeplab_v3plus": lambda: smp("DeepLabV3Plus", "smp_deeplab_v3plus_mobilenet_v2"),
        "lraspp": lraspp,
        "pspnet": lambda: twin(pyramids.PSPNet(CLASSES, 8, 6, 18), output=lambda found: found[0]),
        "gcn": lambda: twin(pyramids.GCN(CLASSES, 8, 7, 18)),
        "refinenet": lambda: twin(pyramids.RefineNet(CLASSES, 8, 8, 2, False, (3, 1, 1, 1), 18)),
        "upernet": lambda: twin(pyramids.UPerNet(CLASSES, 8, 8, 18)),
    }
    return makers[name]()


def logits(name):
    """PyTorch's logits, sub-sampled, channels last."""
    variables = variables_of(module_of(name))
    network, forward, place = peer(name)
    if name == "pspnet":
        # The golden has no auxiliary head.
        del network.aux
        network.aux = nn.AdaptiveAvgPool2d(1)
    written(network, variables, place(variables))
    image = torch.from_numpy(np.moveaxis(image_of(name), -1, 1).copy())
    with torch.no_grad():
        return sample(np.moveaxis(forward(image).numpy(), 1, -1))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_stored_logits_are_pytorchs(name):
    theirs = logits(name)
    stored = {}
    if FILE.exists():
        with np.load(FILE) as file:
            stored = dict(file)
    if os.environ.get("JAXSEG_WRITE_GOLDENS"):
        stored = {key: value for key, value in stored.items() if key in NETWORKS} | {name: theirs}
        np.savez_compressed(FILE, **stored)
    difference = float(np.max(np.abs(stored[name] - theirs)) / np.max(np.abs(theirs)))
    record_difference(f"stored golden {name}", re.sub(r"\+.*", "", f"torch {torch.__version__}"), difference)
    assert difference < 1e-5
