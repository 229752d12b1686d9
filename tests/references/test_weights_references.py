"""Weights through files: what PyTorch saves is read, and the networks loaded from it compute what PyTorch's do.

Random weights and running statistics, odd sizes, float32; the difference is the largest one over the largest value.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.backbones import mobilenet_v2, vgg16
from jaxseg.backbones.densenet import build_densenet
from jaxseg.backbones.mobilenet_v3 import build_mobilenet_v3
from jaxseg.backbones.resnet import build_resnet
from jaxseg.models import deeplab_v3
from jaxseg.weights.load import load_weights
from jaxseg.weights.readers import read_arrays
from tests.references.record import record_difference
from tests.references.torch_variables import randomize, relative_difference, template_of

torch = pytest.importorskip("torch")

TORCHVISION = "torchvision 0.28 "
SIZE = (65, 49)


def picture(size=SIZE, seed=0):
    return np.random.default_rng(seed).normal(size=(2, *size, 3)).astype(np.float32)


def torch_outputs(network, image):
    with torch.no_grad():
        return network(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))


def compare(name, reference, ours, theirs):
    difference = relative_difference(ours, theirs)
    record_difference(f"weights, {name}", reference, difference)
    assert difference < 1e-4


def load(tmp_path, network, module, table, **options):
    """Saves the network, loads the file into our module through its table, without a warning."""
    path = tmp_path / "network.pth"
    torch.save(network.state_dict(), path)
    variables = load_weights(path, template_of(module), table=table, network=module, **options)
    return variables, jax.jit(functools.partial(module.apply, train=False))


@pytest.fixture
def silent(caplog):
    """The options of a network that is loaded are those that the weights expect."""
    yield
    assert not caplog.records


@pytest.fixture(scope="module")
def torchvision():
    """Its operators for boxes have no CPU build here; networks do without."""
    return pytest.importorskip("torchvision")


FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@FORMATS
def test_what_torch_saves(zipped, tmp_path):
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    kept = {
        "turned": base.permute(2, 0, 1),
        "part": base[1:, ::2, 1],
        "parameter": torch.nn.Parameter(base + 1),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(7),
        "expanded": torch.ones(1, 3).expand(4, 3),
    }
    for dtype in ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64"):
        kept[dtype] = torch.tensor([0, 1, 3, 100]).to(getattr(torch, dtype))
    if zipped:
        kept["uint16"] = torch.tensor([1, 60000]).to(torch.uint16)
    path = tmp_path / "w.pt"
    torch.save(kept, path, _use_new_zipfile_serialization=zipped)
    arrays = read_arrays(path)
    assert set(arrays) == set(kept)
    for name, value in kept.items():
        expected = value.detach().float().numpy() if value.dtype == torch.bfloat16 else value.detach().numpy()
        assert arrays[name].dtype == expected.dtype
        np.testing.assert_array_equal(arrays[name], expected)


@FORMATS
def test_a_whole_training_checkpoint(zipped, tmp_path):
    network = torch.nn.DataParallel(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "best": np.float64(0.5),
        "state_dict": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
        "dtype": torch.float32,
    }
    torch.save(checkpoint, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    arrays = read_arrays(tmp_path / "w.pth")
    assert set(arrays) == {name.removeprefix("module.") for name in network.state_dict()}
    np.testing.assert_array_equal(arrays["0.weight"], network.module[0].weight.detach().numpy())


def test_safetensors_of_torch(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    values = {"a": torch.randn(3, 4), "b": torch.tensor([1.5, -2]).bfloat16()}
    safetensors.save_file(values, tmp_path / "w.safetensors")
    arrays = read_arrays(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(arrays["a"], values["a"].numpy())
    np.testing.assert_array_equal(arrays["b"], [1.5, -2])


def test_a_network_saved_whole_is_refused(tmp_path):
    from jaxseg.core.errors import JaxsegError

    torch.save(torch.nn.Conv2d(1, 1, 1), tmp_path / "w.pth")
    with pytest.raises(JaxsegError, match=r"global torch\.nn\.modules\.conv\.Conv2d.*state_dict"):
        read_arrays(tmp_path / "w.pth")


@pytest.mark.parametrize("depth", [18, 50])
def test_resnet(depth, torchvision, tmp_path, silent):
    theirs = randomize(getattr(torchvision.models, f"resnet{depth}")(weights=None))
    variables, forward = load(tmp_path, theirs, build_resnet(depth), "torchvision_resnet")
    image = picture()
    stages = {}
    for i in (1, 4):
        getattr(theirs, f"layer{i}").register_forward_hook(lambda m, x, y, i=i: stages.update({f"stage{i}": y}))
    torch_outputs(theirs, image)
    ours = forward(variables, image)
    for stage, expected in stages.items():
        compare(f"resnet{depth} {stage}", TORCHVISION + f"resnet{depth}", ours[stage], expected)


@pytest.mark.parametrize("last", [False, True])
def test_mobilenet_v2(last, torchvision, tmp_path, silent):
    theirs = randomize(torchvision.models.mobilenet_v2(weights=None))
    module = mobilenet_v2.build(padding="torch", norm_epsilon=1e-5, last_convolution=last)
    variables, forward = load(tmp_path, theirs, module, "torchvision_mobilenet_v2")
    image = picture()
    expected = torch_outputs(theirs.features if last else theirs.features[:-1], image)
    compare(f"mobilenet_v2 {last=}", TORCHVISION + "mobilenet_v2", forward(variables, image)["s32"], expected)


def deeplab_v3_torchvision(backbone="resnet50", **options):
    return deeplab_v3.build(
        num_classes=21, backbone=backbone, output_stride=8, head_convolution=True, alignment="half_pixel", **options
    )


def test_deeplab_v3(torchvision, tmp_path, silent):
    theirs = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True)
    randomize(theirs)
    module = deeplab_v3_torchvision(aux_tap="stage3")
    variables, forward = load(tmp_path, theirs, module, "torchvision_deeplab_v3")
    image = picture()
    expected, ours = torch_outputs(theirs, image), forward(variables, image)
    compare("deeplab_v3 resnet50", TORCHVISION + "deeplabv3_resnet50", ours["logits"], expected["out"])
    compare("deeplab_v3 resnet50, aux", TORCHVISION + "deeplabv3_resnet50", ours["aux/backbone"], expected["aux"])
    # The same file without its auxiliary head, and into another number of classes.
    path = tmp_path / "network.pth"
    load_weights(path, template_of(deeplab_v3_torchvision()), table="torchvision_deeplab_v3")
    eleven = deeplab_v3.build(num_classes=11, backbone="resnet50", head_convolution=True)
    template = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), template_of(eleven))
    loaded = load_weights(path, template, table="torchvision_deeplab_v3", skip="classifier/")
    assert not np.any(loaded["params"]["classifier"]["kernel"])
    np.testing.assert_array_equal(loaded["params"]["head"]["norm"]["bias"], theirs.classifier[2].bias.detach().numpy())


def test_deeplab_v3_mobilenet_v3(torchvision, tmp_path, silent):
    segmentation = torchvision.models.segmentation
    theirs = segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, aux_loss=True)
    randomize(theirs)
    options = {"backbone": "mobilenet_v3_large", "aspp_rates": (12, 24, 36), "aux_tap": "c2", "aux_channels": 10}
    module = deeplab_v3.build(num_classes=21, head_convolution=True, alignment="half_pixel", **options)
    variables, forward = load(tmp_path, theirs, module, "torchvision_deeplab_v3_mobilenet_v3")
    image = picture()
    expected, ours = torch_outputs(theirs, image), forward(variables, image)
    for name, tap, value in (("", "logits", expected["out"]), (", aux", "aux/backbone", expected["aux"])):
        compare(f"deeplab_v3 mobilenet_v3{name}", TORCHVISION + "deeplabv3_mobilenet_v3_large", ours[tap], value)


def test_vgg16_with_fully_connected_layers(torchvision, tmp_path, silent):
    theirs = randomize(torchvision.models.vgg16_bn(weights=None))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    names = {"backbone": template_of(vgg16.build(batch_norm=True)), "fc": None}
    sizes = {"fc6": (7, 7, 512, 4096), "fc7": (1, 1, 4096, 4096)}
    fc = {n: {"kernel": jnp.zeros(s), "bias": jnp.zeros(4096)} for n, s in sizes.items()}
    tree = {c: {"backbone": names["backbone"][c]} for c in ("params", "batch_stats")}
    tree["params"]["fc"] = fc
    loaded = load_weights(tmp_path / "w.pth", tree, table="torchvision_vgg16")
    image = picture((224, 224))[:1]
    x = jax.jit(lambda v, x: vgg16.build(batch_norm=True).apply(v, x, train=False)["s32"])(
        {c: loaded[c]["backbone"] for c in loaded}, image
    )
    first = loaded["params"]["fc"]["fc6"]
    ours = np.einsum("bhwc,hwco->bo", x, first["kernel"]) + first["bias"]
    with torch.no_grad():
        features = theirs.features(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
        expected = theirs.classifier[0](features.flatten(1))
    compare("vgg16_bn fc6", TORCHVISION + "vgg16_bn", ours[:, None, None], expected[:, :, None, None])


NAMES = [
    ("resnet152", "torchvision_resnet", lambda: build_resnet(152)),
    ("densenet201", "torchvision_densenet", lambda: build_densenet(201)),
    ("densenet161", "torchvision_densenet", lambda: build_densenet(161)),
    ("mobilenet_v3_small", "torchvision_mobilenet_v3", lambda: build_mobilenet_v3("small")),
    ("mobilenet_v3_large", "torchvision_mobilenet_v3", lambda: build_mobilenet_v3("large")),
    ("vgg16", "torchvision_vgg16", lambda: vgg16.build()),
]


@pytest.mark.parametrize("name, table, build", NAMES, ids=[name for name, *_ in NAMES])
def test_names_and_shapes_of_others(name, table, build, torchvision, tmp_path, silent):
    """What they compute is compared in test_backbone_references; here every array finds its place."""
    load(tmp_path, getattr(torchvision.models, name)(weights=None), build(), table)


def test_the_deeper_deeplab_has_the_same_names(torchvision, tmp_path, silent):
    theirs = torchvision.models.segmentation.deeplabv3_resnet101(weights=None, weights_backbone=None, aux_loss=True)
    load(tmp_path, theirs, deeplab_v3_torchvision("resnet101", aux_tap="stage3"), "torchvision_deeplab_v3")


def test_timm_names_its_resnets_alike(tmp_path, silent):
    timm = pytest.importorskip("timm")
    load(tmp_path, timm.create_model("resnet50.a1_in1k", pretrained=False), build_resnet(50), "torchvision_resnet")


@pytest.mark.parametrize("depth, output_stride, size", [(18, 32, (67, 81)), (50, 32, (67, 81)), (50, 8, (65, 49))])
def test_timm_resnet_d(depth, output_stride, size, tmp_path, silent):
    timm = pytest.importorskip("timm")
    theirs = randomize(timm.create_model(f"resnet{depth}d", pretrained=False, output_stride=output_stride))
    options = {"stem": "deep", "stem_channels": (32, 32, 64), "pooled_shortcut": True, "output_stride": output_stride}
    module = build_resnet(depth, **options)
    variables, forward = load(tmp_path, theirs, module, "timm_resnet_d")
    trunk = sum(p.numel() for name, p in theirs.named_parameters() if not name.startswith("fc."))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == trunk
    image = picture(size)
    with torch.no_grad():
        expected = theirs.forward_features(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
    ours = forward(variables, image)[f"s{output_stride}"]
    compare(f"resnet{depth}d stride {output_stride}", f"timm {timm.__version__} resnet{depth}d", ours, expected)
