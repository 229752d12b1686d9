"""Loading: what lands where, and every way in which a file may not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.backbones.mobilenet_v2 import build as build_backbone
from jaxseg.core.errors import JaxsegError, UnknownNameError
from jaxseg.weights.load import load_weights
from jaxseg.weights.readers.npz import read_npz
from jaxseg.weights.tables import tf_slim_mobilenet_v2

TABLE = tf_slim_mobilenet_v2.TABLE


def shape_in_file(name):
    """Small shapes that keep the layouts apart: depthwise HWC1, pointwise 11IO, vectors."""
    if name.endswith("depthwise_weights"):
        return (3, 3, 4, 1)
    return (1, 1, 2, 4) if name.endswith("/weights") else (4,)


def shape_of_variable(name):
    source = TABLE[name].name
    return (3, 3, 1, 4) if source.endswith("depthwise_weights") else shape_in_file(source)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {s.name: rng.normal(size=shape_in_file(s.name)).astype(np.float32) for s in TABLE.values()}


@pytest.fixture
def variables():
    """A tree with the table's names below `backbone`, and a head beside it."""
    tree = {"params": {"head": {"kernel": jnp.ones((2, 2))}}, "batch_stats": {}}
    for name in TABLE:
        collection, *path, last = name.split("/")
        node = tree[collection].setdefault("backbone", {})
        for part in path:
            node = node.setdefault(part, {})
        node[last] = jnp.zeros(shape_of_variable(name))
    return tree


def save(path, arrays):
    np.savez(path, **arrays)
    return path


def load(path, variables):
    return load_weights(path, variables, table="tf_slim_mobilenet_v2", scope="backbone")


def test_arrays_land_under_their_names(tmp_path, arrays, variables):
    arrays["MobilenetV2/Logits/Conv2d_1c_1x1/biases"] = np.zeros(3, np.float32)
    loaded = load(save(tmp_path / "w.npz", arrays), variables)
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    block = loaded["params"]["backbone"]["block3"]
    kernel = block["depthwise"]["conv"]["kernel"]
    assert isinstance(kernel, jax.Array) and kernel.shape == (3, 3, 1, 4)
    source = arrays["MobilenetV2/expanded_conv_3/depthwise/depthwise_weights"]
    for i in range(4):
        np.testing.assert_array_equal(kernel[:, :, 0, i], source[:, :, i, 0])
    np.testing.assert_array_equal(
        loaded["batch_stats"]["backbone"]["conv"]["norm"]["var"], arrays["MobilenetV2/Conv/BatchNorm/moving_variance"]
    )
    np.testing.assert_array_equal(
        block["expand"]["norm"]["bias"], arrays["MobilenetV2/expanded_conv_3/expand/BatchNorm/beta"]
    )
    assert loaded["params"]["head"]["kernel"] is variables["params"]["head"]["kernel"]
    np.testing.assert_array_equal(variables["params"]["backbone"]["block3"]["depthwise"]["conv"]["kernel"], 0)


def test_missing_unused_and_misshaped_arrays_are_listed(tmp_path, arrays, variables):
    del arrays["MobilenetV2/Conv/BatchNorm/beta"]
    arrays["MobilenetV2/expanded_conv_1/project/BatchNorm/gamma"] = np.ones(5, np.float32)
    arrays |= {f"extra{i:02}": np.ones(1, np.float32) for i in range(12)}
    with pytest.raises(JaxsegError) as error:
        load(save(tmp_path / "w.npz", arrays), variables)
    text = str(error.value)
    assert "w.npz does not fit (table tf_slim_mobilenet_v2)" in text
    assert (
        "1 variables that the file does not give: params/conv/norm/bias (from MobilenetV2/Conv/BatchNorm/beta)" in text
    )
    assert "12 arrays of the file that nothing uses: extra00," in text
    assert "extra09, ... (2 more)" in text and "extra10" not in text
    assert "1 shapes that differ: params/block1/project/norm/scale is (4,)" in text and "gives (5,)" in text


@pytest.mark.parametrize("bad", [np.full(4, np.nan, np.float32), np.zeros(4, np.int32)])
def test_values_that_are_not_finite_floats(tmp_path, arrays, variables, bad):
    arrays["MobilenetV2/Conv/BatchNorm/beta"] = bad
    with pytest.raises(JaxsegError, match="1 arrays that are not finite.*MobilenetV2/Conv/BatchNorm/beta"):
        load(save(tmp_path / "w.npz", arrays), variables)


def test_variables_the_table_does_not_know(tmp_path, arrays, variables):
    variables["params"]["backbone"]["block17"] = {"kernel": jnp.zeros(1)}
    with pytest.raises(JaxsegError, match="1 variables that the file does not give: params/block17/kernel"):
        load(save(tmp_path / "w.npz", arrays), variables)


def test_unknown_table_and_scope(tmp_path, arrays, variables):
    path = save(tmp_path / "w.npz", arrays)
    with pytest.raises(UnknownNameError, match="tf_slim_mobilenet_v2"):
        load_weights(path, variables, table="tf_slim_mobilenet_v3")
    with pytest.raises(JaxsegError, match="scope = 'back'"):
        load_weights(path, variables, table="tf_slim_mobilenet_v2", scope="back")


def test_unreadable_files(tmp_path, arrays):
    with pytest.raises(JaxsegError, match="no such file"):
        read_npz(tmp_path / "none.npz")
    np.savez(tmp_path / "pickle.npz", a=np.asarray([{"code": "runs"}], dtype=object))
    with pytest.raises(JaxsegError, match="pickle.npz cannot be read"):
        read_npz(tmp_path / "pickle.npz")
    save(tmp_path / "whole.npz", arrays)
    whole = (tmp_path / "whole.npz").read_bytes()
    for name, data in (("cut.npz", whole[: len(whole) // 2]), ("text.npz", b"not an archive"), ("empty.npz", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(JaxsegError, match=name):
            read_npz(tmp_path / name)
    damaged = bytearray(whole)
    damaged[2000:2100] = bytes(100)
    (tmp_path / "damaged.npz").write_bytes(damaged)
    with pytest.raises(JaxsegError, match=r"damaged.npz"):
        read_npz(tmp_path / "damaged.npz")
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(JaxsegError, match="not an .npz"):
        read_npz(tmp_path / "single.npy")


def test_what_is_skipped_keeps_its_values_and_is_not_missed(tmp_path, arrays, variables):
    del arrays["MobilenetV2/Conv/BatchNorm/beta"]
    arrays["MobilenetV2/Conv/weights"] = np.zeros((7, 7, 1, 1), np.float32)
    arrays["MobilenetV2/Conv/extra"] = np.zeros(1, np.float32)
    path = save(tmp_path / "w.npz", arrays)
    options = {"table": "tf_slim_mobilenet_v2", "scope": "backbone"}
    loaded = load_weights(path, variables, skip="^params/conv/|/Conv/extra", **options)
    for part, name in (("conv", "kernel"), ("norm", "bias")):
        old = variables["params"]["backbone"]["conv"][part][name]
        assert loaded["params"]["backbone"]["conv"][part][name] is old
    np.testing.assert_array_equal(
        loaded["params"]["backbone"]["block1"]["expand"]["norm"]["bias"],
        arrays["MobilenetV2/expanded_conv_1/expand/BatchNorm/beta"],
    )
    with pytest.raises(JaxsegError, match="1 variables that the file does not give: params/conv/norm/bias"):
        load_weights(path, variables, skip="conv/conv/kernel|extra", **options)
    with pytest.raises(JaxsegError, match=r"skip = '\(' is no regular expression"):
        load_weights(path, variables, skip="(", **options)


def test_another_architecture_is_recognised(tmp_path, arrays, variables):
    arrays = {f"layer1.{i}.conv1.weight": np.ones((1, 1, 3, 3), np.float32) for i in range(30)}
    with pytest.raises(JaxsegError) as error:
        load(save(tmp_path / "w.npz", arrays), variables)
    lines = str(error.value).splitlines()
    assert "looks like another architecture's: 0 of" in lines[1]
    assert "that the file does not give" in lines[2] and "layer1.0.conv1.weight" in lines[3]


def test_options_that_the_weights_do_not_expect_are_told(tmp_path, arrays, variables, caplog):
    class Network:
        backbone = build_backbone(padding="torch")

    path = save(tmp_path / "w.npz", arrays)
    options = {"table": "tf_slim_mobilenet_v2", "scope": "backbone", "network": Network()}
    load_weights(path, variables, settings={"image_mean": (127.5,) * 3, "image_std": [1, 2, 3]}, **options)
    assert [r.message.partition("w.npz: ")[2] for r in caplog.records] == [
        "model.backbone.padding is 'torch', the weights expect 'same'.",
        "model.image_std is [1, 2, 3], the weights expect (127.5, 127.5, 127.5).",
    ]
    caplog.clear()
    Network.backbone = build_backbone()
    load_weights(path, variables, **options)
    assert not caplog.records
    Network.backbone = build_backbone(norm_epsilon=1e-5)
    del arrays["MobilenetV2/Conv/BatchNorm/beta"]
    with pytest.raises(JaxsegError, match=r"norm.epsilon is 1e-05, the weights expect 0.001\n"):
        load_weights(save(tmp_path / "w.npz", arrays), variables, **options)
    assert not caplog.records


def test_a_plain_file_needs_a_table(tmp_path, arrays, variables):
    with pytest.raises(JaxsegError, match=r"config.weights.table is missing.*w.npz"):
        load_weights(save(tmp_path / "w.npz", arrays), variables)
