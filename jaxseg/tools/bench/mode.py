"""`--mode=bench`: times the run's own train step and inference, writes bench.json and prints a table."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from jaxseg.core.errors import JaxsegError
from jaxseg.core.files import write_text
from jaxseg.core.names import close_matches
from jaxseg.tools.bench.clock import Timing, alternate, ratios
from jaxseg.tools.bench.device import measure_device, peak_bytes_in_use, process_peak_bytes, quickest
from jaxseg.tools.bench.input import measure_input
from jaxseg.tools.bench.peers import make_peer
from jaxseg.tools.bench.profile import profile
from jaxseg.tools.bench.program import InferenceWork, Program, TrainWork, random_batch
from jaxseg.tools.bench.summary import bench_text
from jaxseg.train.run import COMPUTE_DTYPES, Run, make_run, make_training
from jaxseg.train.state import place_state
from jaxseg.train.workdir import versions

FILE_NAME = "bench.json"
PARTS = ("train", "inference", "input")
OURS, THEIRS = "jaxseg", "peer"
PARAMETER_TOLERANCE = 0.005


def bench_mode(config: Any, workdir: pathlib.Path, *, against: str) -> int:
    """Writes `<workdir>/bench.json` and prints it as a table; returns 0."""
    result = bench(config, against=against)
    if jax.process_index() == 0:
        write_text(workdir / FILE_NAME, json.dumps(result, indent=1) + "\n")
        print(bench_text(result), end="")
        print(f"Written: {workdir / FILE_NAME}")
    return 0


def bench(config: Any, *, against: str = "none") -> dict[str, Any]:
    """All figures of `config.bench.parts`.

    Args:
      config: of a run; its weights are not loaded, its data set is opened for the part `input` alone.
      against: "none", or whose network takes turns with ours: "torchvision", "smp", "torch".

    Returns:
      What bench.json holds; docs/speed.md says what each figure means.

    Raises:
      JaxsegError: an unknown part, no step to time, or a peer that there is not.
    """
    parts = check_options(config)
    config = config.copy_and_resolve_references()
    config.weights.path = ""
    run = make_run(config, open_data=False)
    training, batch = make_training(run), random_batch(run)
    parameters = sum(x.size for x in jax.tree.leaves(training.abstract.params))
    peer = make_peer(against, config, run, batch)
    dtype = COMPUTE_DTYPES[config.train.compute_dtype]
    device = measure_device(run.mesh, dtype)
    result: dict[str, Any] = {
        "made_with": versions(),
        "settings": settings_of(config, run, against),
        "parameters": parameters,
    }
    if peer:
        result["peer"] = peer.facts() | parameter_difference(parameters, peer.parameters)
    train = TrainWork(run, training, batch) if {"train", "input"} & set(parts) else None
    measured: dict[str, tuple[Program, dict[str, Timing]]] = {}
    profiles: dict[str, Any] = {}
    if "train" in parts and train:
        train()
        result["memory"] = memory_in_use(run)
        measured["train"] = train.program, take_turns(config, train, peer.train_step if peer else None)
        profiles["train"] = profiled(config, train)
    state = train.state if train else place_state(training.first_state(run.read_weights()), run.mesh)
    if "inference" in parts:
        inference = InferenceWork(run, state.variables(), batch["image"])
        measured["inference"] = inference.program, take_turns(config, inference, peer.inference if peer else None)
        profiles["inference"] = profiled(config, inference)
    # Once more: another program on the machine makes a rate smaller, never larger.
    result["device"] = device = quickest(device, measure_device(run.mesh, dtype))
    for part, (program, timings) in measured.items():
        result[part] = figures(program, timings, device, batch_size=config.train.batch_size)
        result[part] |= profiles[part]
    if train and "train" in parts:
        result["train"]["loss"] = train.loss
    if train and "input" in parts:
        result["input"] = measure_input(config, train.program.compiled, state)
    return result


def check_options(config: Any) -> tuple[str, ...]:
    """The parts to measure.

    Raises:
      JaxsegError: an unknown part, or a number that must be larger.
    """
    options, parts = config.bench, tuple(config.bench.parts)
    for part in parts:
        if part not in PARTS:
            raise JaxsegError(f"config.bench.parts: {part!r} does not exist. {close_matches(part, PARTS)}")
    if not parts:
        raise JaxsegError(f"config.bench.parts is empty; give some of {', '.join(PARTS)}.")
    for key, least in (("steps", 1), ("warmup_steps", 0), ("input_batches", 1), ("profile_steps", 0)):
        if options[key] < least:
            raise JaxsegError(f"config.bench.{key} = {options[key]} must be at least {least}.")
    return parts


def settings_of(config: Any, run: Run, against: str) -> dict[str, Any]:
    """What was timed, in the words of the config."""
    options = config.model.to_dict()
    return {
        "model": {name: value for name, value in options.items() if not name.startswith("image_")},
        "classes": run.info.num_classes,
        "batch_size": config.train.batch_size,
        "size_px": list(config.data.crop_size_px),
        "compute_dtype": config.train.compute_dtype,
        "accumulation_steps": config.train.accumulation_steps,
        "loss": config.loss.to_dict(),
        "optimizer": config.optimizer.name,
        "mesh": dict(run.mesh.shape),
        "against": against,
        **config.bench.to_dict(),
    }


def take_turns(config: Any, ours: Callable[[], Any], theirs: Callable[[], Any] | None) -> dict[str, Timing]:
    """Our work, in turn with the peer's where there is one."""
    works = {OURS: ours} | ({THEIRS: theirs} if theirs else {})
    return alternate(works, steps=config.bench.steps, warmup_steps=config.bench.warmup_steps)


def profiled(config: Any, work: TrainWork | InferenceWork) -> dict[str, Any]:
    """`profile` where the config asks for its steps."""
    steps = config.bench.profile_steps
    return {"profile": profile(work, work.program.compiled.as_text(), steps)} if steps else {}


def figures(program: Program, timings: dict[str, Timing], device: dict[str, Any], *, batch_size: int) -> dict[str, Any]:
    """What bench.json says of one part.

    Args:
      program: of ours.
      timings: of "jaxseg" and, where there is one, of "peer".
      device: the measured rates.
      batch_size: images of a step.
    """
    ours = timings[OURS]
    floor = {
        "flops_seconds": program.flops / device["matrix_rate_flops_s"],
        "bytes_seconds": program.bytes_accessed * device["devices"] / device["bandwidth_bytes_s"],
    }
    found: dict[str, Any] = {
        "seconds": ours.to_json(),
        "images_per_second": batch_size / ours.median,
        "share_of_matrix_rate": floor["flops_seconds"] / ours.median,
        "floor": floor,
        "times_floor": ours.median / max(floor.values()),
        "program": program.to_json(),
    }
    if device["platform"] == "cpu":
        cpu_seconds = program.flops / device["matrix_rate_flops_cpu_s"]
        found["share_of_matrix_rate_cpu"] = cpu_seconds / found["seconds"]["cpu_median"]
    if THEIRS in timings:
        theirs = timings[THEIRS]
        found["peer"] = {"seconds": theirs.to_json(), "images_per_second": batch_size / theirs.median}
        found["against"] = ratios(ours, theirs)
    return found


def memory_in_use(run: Run) -> dict[str, int]:
    """After the first train step and before the peer's: the device's peak where it tells, the process' on a CPU."""
    found = {}
    peak = peak_bytes_in_use(run.mesh)
    if peak is not None:
        found["device_peak_bytes"] = peak
    if run.mesh.devices.flat[0].platform == "cpu":
        found["process_peak_bytes"] = process_peak_bytes()
    return found


def parameter_difference(ours: int, theirs: int) -> dict[str, Any]:
    """How far the peer's number of parameters is from ours, and a note where the networks are not the same."""
    share = (ours - theirs) / theirs
    found: dict[str, Any] = {"parameter_difference": share}
    if abs(share) > PARAMETER_TOLERANCE:
        found["note"] = f"not the same network: we have {100 * share:+.2f} % of its parameters more"
    return found
