"""`--mode=bench`: times the run's own train step and inference, writes bench.json and prints a table."""

import dataclasses
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
from jaxseg.tools.bench.peers import Peer, make_peer
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
    result: dict[str, Any] = {
        "made_with": versions(),
        "settings": settings_of(config, run, against),
        "parameters": parameters,
    }
    train = TrainWork(run, training, batch) if {"train", "input"} & set(parts) else None
    inference = InferenceWork(run, training, batch) if "inference" in parts else None
    peer = make_peer(against, config, run, batch)
    for work in (train, inference):
        if work:
            work.compile()
    if inference and not train:
        inference.variables = place_state(training.first_state(run.read_weights()), run.mesh).variables()
    if peer:
        result["peer"] = peer.facts() | parameter_difference(parameters, peer.parameters)
        peer.prepare(parts)
    return result | measure(config, run, Works(train, inference, peer), parts)


@dataclasses.dataclass(frozen=True)
class Works:
    """What is timed: our two parts, where they are wanted, and the peer."""

    train: TrainWork | None
    inference: InferenceWork | None
    peer: Peer | None


def measure(config: Any, run: Run, works: Works, parts: tuple[str, ...]) -> dict[str, Any]:
    """Turns, and the devices' rates before and after them.

    Args:
      config, run: the run's.
      works: what is timed, compiled.
      parts: those of the config.
    """
    train, inference, peer = works.train, works.inference, works.peer
    dtype = COMPUTE_DTYPES[config.train.compute_dtype]
    before = measure_device(run.mesh, dtype)
    result: dict[str, Any] = {}
    profiles: dict[str, Any] = {}
    measured: dict[str, tuple[Program, dict[str, Timing]]] = {}
    if "train" in parts and train:
        train.step()
        train.wait()
        result["memory"] = memory_in_use(run)
        measured["train"] = train.program, take_turns(config, train, peer.train_step if peer else None, peer)
        profiles["train"] = profiled(config, train)
    if inference:
        if train:
            inference.variables = train.state.variables()
        turns = take_turns(config, inference, peer.inference if peer else None, peer)
        measured["inference"] = inference.program, turns
        profiles["inference"] = profiled(config, inference)
    # Once more: another program on the machine makes a rate smaller, never larger.
    result["device"] = device = quickest(before, measure_device(run.mesh, dtype))
    for part, (program, timings) in measured.items():
        result[part] = figures(program, timings, device, batch_size=config.train.batch_size)
        result[part] |= profiles[part]
    if train and "train" in parts:
        result["train"]["loss"] = train.loss
    if train and "input" in parts:
        result["input"] = measure_input(config, train.program.compiled, train.state)
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
    least_of = {"steps": 1, "steps_a_turn": 1, "warmup_steps": 0, "input_batches": 1, "profile_steps": 0}
    for key, least in least_of.items():
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


def take_turns(
    config: Any, ours: TrainWork | InferenceWork, theirs: Callable[[], Any] | None, peer: Peer | None
) -> dict[str, Timing]:
    """Our work, in turn with the peer's where there is one; the times are those of a step.

    Args:
      config: of the run; a turn is `bench.steps_a_turn` steps, after which there is a wait for their results.
      ours: our part.
      theirs: begins a step of the peer's.
      peer: waits for it.
    """
    number = config.bench.steps_a_turn
    works = {OURS: several(ours.step, ours.wait, number)}
    if theirs and peer:
        works[THEIRS] = several(theirs, peer.wait, number)
    timings = alternate(works, steps=config.bench.steps, warmup_steps=config.bench.warmup_steps)
    return {name: timing.a_step(number) for name, timing in timings.items()}


def several(step: Callable[[], Any], wait: Callable[[], Any], number: int) -> Callable[[], None]:
    """A call that begins `number` steps, one after the other as the train loop does, and waits once."""

    def call() -> None:
        for _ in range(number):
            step()
        wait()

    return call


def profiled(config: Any, work: TrainWork | InferenceWork) -> dict[str, Any]:
    """`profile` where the config asks for its steps."""
    steps = config.bench.profile_steps
    if not steps:
        return {}
    return {"profile": profile(several(work.step, work.wait, 1), work.program.compiled.as_text(), steps)}


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
        if device["platform"] != "cpu":  # there it is the host's waiting
            del found["against"]["ratio_of_cpu_medians"]
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
