"""What the devices can do, measured: the rate of a matrix product and the bandwidth of their memory."""

import functools
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

ENOUGH_SECONDS = 0.05
REPEATS = 5
CPU_MATRIX_SIDES = (1024, 2048, 4096, 8192)
MATRIX_SIDES = (8192, 16384)  # of accelerators; each new side is compiled, on a GPU with a search for the best kernel
CPU_COPY_BYTES = tuple(2**n for n in range(26, 32))
COPY_BYTES = (2**30, 2**32)
ENVIRONMENT = ("XLA_FLAGS", "GLIBC_TUNABLES", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")


def cores() -> int:
    """Cores that this process may use: those that XLA's threads on a CPU run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure_device(mesh: Mesh, dtype: jnp.dtype) -> dict[str, Any]:
    """`platform`, `kind`, `devices`, `cores`; the rates of all devices together.

    `matrix_rate_flops_s` and `bandwidth_bytes_s` are per second, `matrix_rate_flops_cpu_s` is per second of processor
    time: on a busy CPU the one that can still be trusted, on accelerators without a meaning.
    """
    device = mesh.devices.flat[0]
    side, rate, cpu_rate = matrix_rate(mesh, dtype)
    size, bandwidth = memory_bandwidth(mesh)
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "devices": int(mesh.devices.size),
        "cores": cores(),
        "matrix_rate_flops_s": rate,
        "matrix_rate_flops_cpu_s": cpu_rate,
        "matrix_side": side,
        "matrix_dtype": jnp.dtype(dtype).name,
        "bandwidth_bytes_s": bandwidth,
        "bandwidth_array_bytes": size,
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }


def quickest(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two measurements of the same devices as one: the larger of each rate."""
    rates = ("matrix_rate_flops_s", "matrix_rate_flops_cpu_s", "bandwidth_bytes_s")
    return one | {name: max(one[name], other[name]) for name in rates}


@functools.cache
def _matrix_programs(sharding: NamedSharding) -> tuple[Any, Any]:
    """What fills `[devices, n, n]` at random, and the product; kept, so that a second call compiles nothing."""
    fill = jax.jit(
        lambda shape, dtype: jax.random.normal(jax.random.key(0), shape, dtype),
        static_argnums=(0, 1),
        out_shardings=sharding,
    )
    return fill, jax.jit(lambda a, b: a @ b, out_shardings=sharding)


def matrix_rate(mesh: Mesh, dtype: jnp.dtype, *, enough_seconds: float = ENOUGH_SECONDS) -> tuple[int, float, float]:
    """Side n, FLOP/s and FLOP per second of processor time of a product of n x n matrices on every device at once.

    `2 n^3 devices / seconds`. The side doubles until a product takes `enough_seconds`; the best of five calls counts,
    since this stands for what the device can do at most. Random numbers: a GPU multiplies constants more quickly, as
    they take less power. Default precision, that is, what the network's convolutions get (TF32 on some GPUs).
    """
    devices = mesh.devices.size
    fill, product = _matrix_programs(NamedSharding(mesh, PartitionSpec(mesh.axis_names)))
    for side in CPU_MATRIX_SIDES if _on_cpu(mesh) else MATRIX_SIDES:
        a = fill((devices, side, side), dtype)
        seconds, cpu_seconds = _best(functools.partial(product, a, a))
        if seconds >= enough_seconds:
            break
    flops = 2 * side**3 * devices
    return side, flops / seconds, flops / cpu_seconds


def _on_cpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


@functools.cache
def _triad_programs(sharding: NamedSharding) -> tuple[Any, Any]:
    """What fills `[devices, n]` with ones, and `a <- 0.5 a + b`."""
    fill = jax.jit(lambda shape: jnp.ones(shape, jnp.float32), static_argnums=0, out_shardings=sharding)
    return fill, jax.jit(lambda a, b: 0.5 * a + b, donate_argnums=0, out_shardings=sharding)


def memory_bandwidth(mesh: Mesh, *, enough_seconds: float = ENOUGH_SECONDS) -> tuple[int, float]:
    """Bytes of an array a device, and bytes/s of `a <- 0.5 a + b` over all devices: two arrays read, one written.

    The written array takes the place of `a`, so that no new memory is asked for. The arrays grow until a pass takes
    `enough_seconds`, from 64 MiB on a CPU and 1 GiB elsewhere, beyond the caches of most machines.
    """
    devices = mesh.devices.size
    fill, triad = _triad_programs(NamedSharding(mesh, PartitionSpec(mesh.axis_names)))
    for size in CPU_COPY_BYTES if _on_cpu(mesh) else COPY_BYTES:
        kept, b = [fill((devices, size // 4))], fill((devices, size // 4))

        def turn(kept: list[jax.Array] = kept, b: jax.Array = b) -> jax.Array:
            kept[0] = triad(kept[0], b)
            return kept[0]

        seconds, _ = _best(turn)
        if seconds >= enough_seconds:
            break
    return size, 3 * size * devices / seconds


def _best(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds and processor seconds of the quickest of `REPEATS` calls, after one that is not counted."""
    jax.block_until_ready(call())
    found, cpu_found = [], []
    for _ in range(REPEATS):
        cpu_began, began = time.process_time(), time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - began)
        cpu_found.append(max(time.process_time() - cpu_began, 1e-9))
    return min(found), min(cpu_found)


def peak_bytes_in_use(mesh: Mesh) -> int | None:
    """The largest number of bytes in use so far on any of this process's devices; None where a device does not say."""
    statistics = [device.memory_stats() or {} for device in mesh.local_devices]
    peaks = [s["peak_bytes_in_use"] for s in statistics if "peak_bytes_in_use" in s]
    return max(peaks) if peaks else None


def process_peak_bytes() -> int:
    """The largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
