"""A run's train step and inference, compiled: seconds of the compiler, FLOPs, bytes, memory; then callable at will."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from jaxseg.core.mesh import batch_sharding, put_batch
from jaxseg.core.types import Batch
from jaxseg.train.run import Run, Training
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


def compile_program(function: Any, *arguments: Any) -> Program:
    """Lowers and compiles a jitted function for these arguments, arrays or their shapes with shardings."""
    began = time.perf_counter()
    traced = function.trace(*arguments)
    lowered = traced.lower()
    lowered_at = time.perf_counter()
    compiled = lowered.compile()
    compiled_at = time.perf_counter()
    plain = traced.lower(lowering_platforms=(PLAIN_PLATFORM,)).cost_analysis() or {}
    cost = compiled.cost_analysis() or {}
    return Program(
        compiled=compiled,
        lower_seconds=lowered_at - began,
        compile_seconds=compiled_at - lowered_at,
        flops=float(plain.get("flops", 0.0)),
        flops_compiled=float(cost.get("flops", 0.0)),
        bytes_accessed=float(cost.get("bytes accessed", 0.0)),
        memory=memory_of(compiled),
    )


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


class TrainWork:
    """The run's train step on a batch that lies on the devices; the state goes from step to step."""

    def __init__(self, run: Run, training: Training, batch: Batch) -> None:
        """Compiles. Args: run; training: its step; batch: this process's rows."""
        self._batch = put_batch(run.mesh, batch)
        self.program = compile_program(training.step, placed_shapes(training.abstract, run.mesh), self._batch)
        self.state: TrainState = place_state(training.first_state(run.read_weights()), run.mesh)
        self.loss = float("nan")

    def __call__(self) -> None:
        """One step; returns when it is done."""
        self.state, metrics = self.program.compiled(self.state, self._batch)
        jax.block_until_ready((self.state, metrics))
        self.loss = float(metrics["loss"])


class InferenceWork:
    """Logits at the images' size from 8-bit images, one view and no window: the config's scales are left out."""

    def __init__(self, run: Run, variables: Any, image: np.ndarray) -> None:
        """Compiles. Args: run; variables: on the devices, kept; image: this process's rows, uint8."""
        predictor = dataclasses.replace(run.predictor, scales=(1.0,), flip=False, window_px=(), stride_px=())
        self._variables = variables
        self._image = put_batch(run.mesh, {"image": image})["image"]
        infer = jax.jit(
            predictor.logits,
            in_shardings=(state_shardings(variables, run.mesh), batch_sharding(run.mesh, 4)),
            out_shardings=batch_sharding(run.mesh, 4),
        )
        self.program = compile_program(infer, self._variables, self._image)

    def __call__(self) -> None:
        """One batch; returns when it is done."""
        jax.block_until_ready(self.program.compiled(self._variables, self._image))
