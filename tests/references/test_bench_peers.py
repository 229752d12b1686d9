"""The networks that take turns with ours in the bench: as many parameters, logits of the size, a step that learns."""

import os
import types

import jax
import numpy as np
import pytest

from experiments.bench import MODELS, get_config
from jaxseg.core.errors import JaxsegError
from jaxseg.core.mesh import make_mesh
from jaxseg.core.rng import base_key
from jaxseg.tools.bench import peers
from jaxseg.tools.bench.networks import NETWORKS
from jaxseg.train.run import make_run

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("segmentation_models_pytorch")

PEERS = {"deeplab_v3_resnet50": "torchvision", "tiramisu56": "torch"} | dict.fromkeys(
    ("deeplab_v3plus_mobilenet_v2", "unet_resnet34", "deeplab_v3plus_xception65"), "smp"
)


def network_of(row, size):
    config = get_config(row)
    return NETWORKS[PEERS[row]][config.model.name](config.model.to_dict(), 21, size)


SLOW = ("deeplab_v3plus_mobilenet_v2", "deeplab_v3plus_xception65")


@pytest.mark.parametrize("row", [pytest.param(row, marks=[pytest.mark.slow] if row in SLOW else []) for row in MODELS])
def test_both_sides_have_the_same_number_of_parameters(row):
    config = get_config(row)
    config.train.batch_size = config.evaluate.batch_size = 4
    shapes = jax.eval_shape(make_run(config, open_data=False).initialize, base_key(0))["params"]
    theirs = network_of(row, tuple(config.data.crop_size_px))
    assert sum(p.numel() for p in theirs.parameters()) == sum(x.size for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize(("row", "size"), [("tiramisu56", (45, 64)), ("deeplab_v3plus_mobilenet_v2", (65, 81))])
def test_sizes_that_are_no_multiples(row, size):
    network = network_of(row, size).eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, *size)).shape == (1, 21, *size)


def peer_of(row, side=16, *, optimizer="sgd", **model):
    config = get_config(row)
    config.model.update(model)
    config.data.crop_size_px = (side, side)
    config.optimizer.name = optimizer
    rng = np.random.default_rng(0)
    label = rng.integers(0, 21, (2, side, side), dtype=np.int32)
    label[:, :4] = 255
    batch = {"image": rng.integers(0, 256, (2, side, side, 3), dtype=np.uint8), "label": label}
    mesh = make_mesh({"data": 1}, devices=jax.devices()[:1])
    run = types.SimpleNamespace(mesh=mesh, info=types.SimpleNamespace(num_classes=21))
    return peers.make_peer(PEERS[row], config, run, batch)


def test_its_step_learns_the_batch_and_inference_leaves_it_alone():
    torch.manual_seed(0)
    peer = peer_of("tiramisu56", layers=(1, 1, 1), growth_rate=4, first_channels=8, dropout_rate=0.0)
    peer.train_step()
    first = peer.loss
    before = {name: value.clone() for name, value in peer._network.state_dict().items()}
    peer.inference()
    assert all(torch.equal(value, before[name]) for name, value in peer._network.state_dict().items())
    for _ in range(5):
        peer.train_step()
    assert 0 < peer.loss < first
    facts = peer.facts()
    assert facts["parameters"] == sum(p.numel() for p in peer._network.parameters())
    assert set(facts["versions"]) == {"torch"} and facts["threads"] == len(os.sched_getaffinity(0))


def test_what_it_cannot_do_is_told():
    with pytest.raises(JaxsegError, match="no counterpart of config.model.backbone = 'vgg16'"):
        peer_of("unet_resnet34", backbone="vgg16")
    with pytest.raises(JaxsegError, match="optimizer 'rmsprop'"):
        peer_of("tiramisu56", layers=(1, 1, 1), optimizer="rmsprop")
    config = get_config("deeplab_v3_resnet50")
    with pytest.raises(JaxsegError, match="output_stride = 16, but the peer has 8 alone"):
        NETWORKS["torchvision"]["deeplab_v3"](config.model.to_dict() | {"output_stride": 16}, 21, (64, 64))
    with pytest.raises(JaxsegError, match="takes sizes that 32 divides"):
        NETWORKS["smp"]["upernet"]({}, 21, (65, 64))
