"""One mesh with the axes data, fsdp and space; the rules that place batches and parameters on it."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.core.errors import JaxsegError

AXES = ("data", "fsdp", "space")


def make_mesh(sizes: Mapping[str, int] | None = None, *, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of a run.

    Args:
      sizes: devices along `data`, `fsdp` and `space`; one of them may be -1, "all that are left". Default: all on data.
      devices: defaults to every device of every process.

    Raises:
      JaxsegError: the product is not the number of devices.
    """
    devices = list(devices if devices is not None else jax.devices())
    wanted = {"data": -1, "fsdp": 1, "space": 1} | dict(sizes or {})
    if set(wanted) != set(AXES):
        raise JaxsegError(f"config.mesh has the axes {sorted(wanted)}; it takes {', '.join(AXES)}.")
    free = [a for a in AXES if wanted[a] == -1]
    fixed = int(np.prod([wanted[a] for a in AXES if wanted[a] != -1]))
    if len(free) > 1 or fixed < 1 or len(devices) % fixed or (not free and fixed != len(devices)):
        raise JaxsegError(
            f"config.mesh {wanted} does not fit {len(devices)} devices: the sizes must multiply to that number, "
            "one of them may be -1."
        )
    shape = [len(devices) // fixed if wanted[a] == -1 else wanted[a] for a in AXES]
    return Mesh(np.asarray(devices).reshape(shape), AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
    """Rows over data and fsdp; image rows (axis 1) over space where there is such an axis."""
    spatial = ("space",) if ndim >= 3 and mesh.shape["space"] > 1 else ()
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), *spatial))


def parameter_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Splits the largest axis that fsdp divides; replicated where there is none or fsdp is 1."""
    ways = mesh.shape["fsdp"]
    candidates = [i for i, n in enumerate(shape) if n % ways == 0 and n >= ways]
    if ways == 1 or not candidates:
        return replicated(mesh)
    axis = max(candidates, key=lambda i: shape[i])
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))


def check_batch_size(mesh: Mesh, batch_size: int, *, key: str, accumulation_steps: int = 1) -> None:
    """Raises JaxsegError unless every device gets the same number of rows."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"] * accumulation_steps
    if batch_size < 1 or batch_size % ways:
        lower, upper = batch_size // ways * ways, (batch_size // ways + 1) * ways
        near = f"{lower} or {upper}" if lower > 0 else f"{upper}"
        raise JaxsegError(
            f"{key} = {batch_size} does not divide by {ways} "
            f"(devices along data and fsdp x accumulation steps); use {near}."
        )


def put_batch(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Makes global arrays out of this process's rows of the batch."""
    return {
        name: jax.make_array_from_process_local_data(batch_sharding(mesh, np.ndim(value)), np.asarray(value))
        for name, value in batch.items()
    }
