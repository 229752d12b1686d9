"""A run's train step and inference, compiled: seconds of the compiler, FLOPs, bytes, memory; then callable at will."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxseg.core.errors import JaxsegError
from jaxseg.core.mesh import batch_sharding, make_mesh, put_batch
from jaxseg.core.types import Batch
from jaxseg.train.run import Run, Training, make_training
from jaxseg.train.state import TrainState, place_state, placed_shapes, state_shardings

# No lowering of ours is written for this platform, so that its program holds each convolution as what it is.
PLAIN_PLATFORM = "tpu"


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function and what is known of it without running it.

    Attributes:
      compiled: the executable; what it donates is gone after a call.
      lower_seconds: tracing and lowering.
      compile_seconds: XLA, without the persistent cache.
      flops: of the plain program, before XLA's optimisations and without this project's own lowerings, all devices;
        a loop's body counts once, so that accumulation steps are missing.
      flops_compiled: of the executable, a device: a multiplication that became a sum of shifted products counts so.
      bytes_accessed: of the executable, a device, by XLA's count: what each fused operation reads and writes.
      memory: bytes a device: `arguments`, `outputs`, `aliased` (outputs in the place of arguments), `temporary`, and
        their `total`.
    """

    compiled: Any
    lower_seconds: float
    compile_seconds: float
    flops: float
    flops_compiled: float
    bytes_accessed: float
    memory: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Everything but the executable."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "compiled"}


def lower_program(function: Any, *arguments: Any, flops: float) -> Callable[[], Program]:
    """Traces and lowers a jitted function for these arguments, arrays or their shapes with shardings.

    Tracing is the host's work; compiling for an accelerator runs candidates of kernels on it and times them.

    Args:
      function, arguments: what to lower.
      flops: of `plain_flops`.

    Returns:
      What compiles it.
    """
    began = time.perf_counter()
    lowered = function.trace(*arguments).lower()
    lower_seconds = time.perf_counter() - began

    def compile_lowered() -> Program:
        began = time.perf_counter()
        compiled = lowered.compile()
        compile_seconds = time.perf_counter() - began
        cost = compiled.cost_analysis() or {}
        return Program(
            compiled=compiled,
            lower_seconds=lower_seconds,
            compile_seconds=compile_seconds,
            flops=flops,
            flops_compiled=float(cost.get("flops", 0.0)),
            bytes_accessed=float(cost.get("bytes accessed", 0.0)),
            memory=memory_of(compiled),
        )

    return compile_lowered


def plain_flops(function: Any, *arguments: Any) -> float:
    """XLA's count of a function that is jitted for CPUs, which alone count before they compile; see `Program.flops`."""
    counted = function.trace(*arguments).lower(lowering_platforms=(PLAIN_PLATFORM,)).cost_analysis()
    if counted is None:
        raise JaxsegError("this version of JAX does not count a program's FLOP before it is compiled.")
    return float(counted["flops"])


def on_one_cpu(run: Run) -> Run:
    """The same run where its FLOP can be counted: on a single CPU device, unless it is on CPUs anyway.

    Raises:
      JaxsegError: JAX has no CPU platform.
    """
    if run.mesh.devices.flat[0].platform == "cpu":
        return run
    try:
        device = jax.devices("cpu")[0]
    except RuntimeError as error:
        raise JaxsegError(
            f"--mode=bench counts FLOP on JAX's CPU platform ({error}). Leave it in JAX_PLATFORMS, as in cuda,cpu."
        ) from error
    return dataclasses.replace(run, mesh=make_mesh(devices=[device]))


def shapes_on(mesh: Mesh, batch: Batch) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the whole batch, as `put_batch` would place it."""
    return {
        name: jax.ShapeDtypeStruct(
            (value.shape[0] * jax.process_count(), *value.shape[1:]),
            value.dtype,
            sharding=batch_sharding(mesh, value.ndim),
        )
        for name, value in batch.items()
    }


def memory_of(compiled: Any) -> dict[str, int]:
    """XLA's own account of an executable, in bytes a device."""
    found = compiled.memory_analysis()
    if found is None:
        return {}
    memory = {
        "arguments": int(found.argument_size_in_bytes),
        "outputs": int(found.output_size_in_bytes),
        "aliased": int(found.alias_size_in_bytes),
        "temporary": int(found.temp_size_in_bytes),
    }
    total = memory["arguments"] + memory["outputs"] + memory["temporary"] - memory["aliased"]
    return memory | {"total": total}


def random_batch(run: Run) -> Batch:
    """This process's rows of a training batch: random pixels and labels, one label in sixteen void."""
    config = run.config
    rows = config.train.batch_size // jax.process_count()
    shape = (rows, *config.data.crop_size_px)
    generator = np.random.default_rng(config.seed)
    label = generator.integers(0, run.info.num_classes, shape, dtype=np.int32)
    label[generator.random(shape) < 1 / 16] = run.info.void
    return {"image": generator.integers(0, 256, (*shape, 3), dtype=np.uint8), "label": label}


def jitted_logits(run: Run, shapes: Any) -> Any:
    """`logits(variables, image)` of one view of the whole image, for variables of these shapes, on the run's mesh."""
    predictor = dataclasses.replace(run.predictor, scales=(1.0,), flip=False, window_px=(), stride_px=())
    return jax.jit(
        predictor.logits,
        in_shardings=(state_shardings(shapes, run.mesh), batch_sharding(run.mesh, 4)),
        out_shardings=batch_sharding(run.mesh, 4),
    )


class TrainWork:
    """The run's train step on a batch that lies on the devices; the state goes from step to step."""

    program: Program

    def __init__(self, run: Run, training: Training, batch: Batch) -> None:
        """Lowers. Args: run; training: its step; batch: this process's rows."""
        self._run = run
        self._batch = put_batch(run.mesh, batch)
        counting = on_one_cpu(run)
        counted = training if counting is run else make_training(counting)
        shapes = placed_shapes(counted.abstract, counting.mesh)
        flops = plain_flops(counted.step, shapes, shapes_on(counting.mesh, batch))
        shapes = placed_shapes(training.abstract, run.mesh)
        self._compile = lower_program(training.step, shapes, self._batch, flops=flops)
        self._first = training.first_state(run.read_weights())
        self.loss = float("nan")

    def compile(self) -> None:
        """Compiles, and puts the state on the devices; before the first step."""
        self.program = self._compile()
        self.state: TrainState = place_state(self._first, self._run.mesh)

    def step(self) -> None:
        """Begins one step."""
        self.state, self._metrics = self.program.compiled(self.state, self._batch)

    def wait(self) -> None:
        """Returns when all steps are done."""
        jax.block_until_ready((self.state, self._metrics))
        self.loss = float(self._metrics["loss"])


class InferenceWork:
    """Logits at the images' size from 8-bit images, one view and no window: the config's scales are left out.

    `variables`, on the devices, have to be set before the first step.
    """

    program: Program
    variables: Any

    def __init__(self, run: Run, training: Training, batch: Batch) -> None:
        """Lowers. Args: run; training: for the variables' shapes; batch: this process's rows."""
        self._image = put_batch(run.mesh, {"image": batch["image"]})["image"]
        counting = on_one_cpu(run)
        shapes = placed_shapes(training.abstract, counting.mesh).variables()
        image = shapes_on(counting.mesh, {"image": batch["image"]})["image"]
        flops = plain_flops(jitted_logits(counting, shapes), shapes, image)
        shapes = placed_shapes(training.abstract, run.mesh).variables()
        self._compile = lower_program(jitted_logits(run, shapes), shapes, self._image, flops=flops)

    def compile(self) -> None:
        """Compiles, before the first step."""
        self.program = self._compile()

    def step(self) -> None:
        """Begins one batch."""
        self._logits = self.program.compiled(self.variables, self._image)

    def wait(self) -> None:
        """Returns when all batches are done."""
        jax.block_until_ready(self._logits)
