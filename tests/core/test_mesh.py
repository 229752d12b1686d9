import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxseg.core.errors import JaxsegError
from jaxseg.core.mesh import (
    AXES,
    batch_sharding,
    check_batch_size,
    make_mesh,
    parameter_sharding,
    put_batch,
    replicated,
)


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        (None, (4, 1, 1)),
        ({"data": 2, "fsdp": 2}, (2, 2, 1)),
        ({"data": 2, "space": -1}, (2, 1, 2)),
        ({"data": -1, "fsdp": 4}, (1, 4, 1)),
    ],
)
def test_sizes_fill_the_devices(sizes, shape):
    mesh = make_mesh(sizes)
    assert mesh.axis_names == AXES
    assert mesh.devices.shape == shape
    assert {device.id for device in mesh.devices.flat} == {device.id for device in jax.devices()}


def test_a_mesh_of_some_devices():
    assert make_mesh(devices=jax.devices()[:2]).devices.shape == (2, 1, 1)


@pytest.mark.parametrize(
    "sizes",
    [{"data": 3}, {"data": 2}, {"data": -1, "fsdp": 3}, {"data": -1, "fsdp": -1}, {"data": 0}, {"data": 8}],
)
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(JaxsegError, match="does not fit 4 devices"):
        make_mesh(sizes)


def test_an_unknown_axis_is_named():
    with pytest.raises(JaxsegError, match="takes data, fsdp, space"):
        make_mesh({"model": 2})


def test_rows_lie_over_data_and_fsdp_image_rows_over_space():
    assert batch_sharding(make_mesh(), 4).spec == PartitionSpec(("data", "fsdp"))
    split = make_mesh({"data": 2, "space": 2})
    assert batch_sharding(split, 4).spec == PartitionSpec(("data", "fsdp"), "space")
    assert batch_sharding(split, 1).spec == PartitionSpec(("data", "fsdp"))


def test_fsdp_splits_the_largest_axis_that_divides():
    mesh = make_mesh({"data": 2, "fsdp": 2})
    assert parameter_sharding(mesh, (3, 3, 8, 6)).spec == PartitionSpec(None, None, "fsdp")
    assert parameter_sharding(mesh, (3, 3, 7, 6)).spec == PartitionSpec(None, None, None, "fsdp")
    assert parameter_sharding(mesh, (3, 5)) == replicated(mesh)
    assert parameter_sharding(mesh, ()) == replicated(mesh)
    assert parameter_sharding(make_mesh(), (8, 8)) == replicated(make_mesh())


def test_a_batch_lies_on_the_devices_as_its_rows_say():
    batch = {
        "image": np.arange(8 * 2 * 2 * 3, dtype=np.uint8).reshape(8, 2, 2, 3),
        "index": np.arange(8, dtype=np.int32),
    }
    placed = put_batch(make_mesh({"data": 2, "space": 2}), batch)
    for name, value in batch.items():
        assert placed[name].dtype == value.dtype
        np.testing.assert_array_equal(placed[name], value)
    shapes = {shard.data.shape for shard in placed["image"].addressable_shards}
    assert shapes == {(4, 1, 2, 3)}
    rows = sorted(tuple(np.asarray(shard.data).tolist()) for shard in placed["index"].addressable_shards)
    assert rows == [(0, 1, 2, 3)] * 2 + [(4, 5, 6, 7)] * 2


def test_batch_sizes_that_divide_pass():
    check_batch_size(make_mesh(), 8, key="config.train.batch_size")
    check_batch_size(make_mesh({"data": 2, "space": 2}), 2, key="config.train.batch_size")
    check_batch_size(make_mesh(), 8, key="config.train.batch_size", accumulation_steps=2)


@pytest.mark.parametrize(
    ("batch_size", "accumulation_steps", "advice"),
    [(6, 1, "use 4 or 8"), (3, 1, "use 4"), (12, 2, "use 8 or 16"), (0, 1, "use 4")],
)
def test_batch_sizes_that_do_not_divide_are_answered_with_near_ones(batch_size, accumulation_steps, advice):
    with pytest.raises(JaxsegError, match=rf"config\.train\.batch_size = {batch_size} does not divide .*{advice}\."):
        check_batch_size(make_mesh(), batch_size, key="config.train.batch_size", accumulation_steps=accumulation_steps)
