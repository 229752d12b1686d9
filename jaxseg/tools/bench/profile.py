"""Where the time of a compiled program goes, by operation: jax.profiler's trace and the program's text together."""

import collections
import glob
import gzip
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\([^=]*?\)|\S+) ([\w\-]+)\(")
OP_NAME = re.compile(r'op_name="([^"]*)"')
LAYOUT = re.compile(r"\{[^{}]*\}")
SHOWN = 25


def profile(work: Callable[[], Any], program_text: str, steps: int) -> dict[str, Any]:
    """Calls the work under the profiler, after one call without.

    Args:
      work: one step of a program; it returns when the step is done.
      program_text: of the executable, `compiled.as_text()`.
      steps: calls under the profiler.

    Returns:
      `steps`, `seconds_a_step` (sum over the operations, that of all threads and devices), `operations` (the most
      expensive first: `name`, `opcode`, `shape`, `source`, `calls` and `seconds` a step, `share`) and `sources`
      (primitive of JAX and direction -> seconds a step).
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    work()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(steps):
                work()
        events: list[Any] = []
        for path in glob.glob(os.path.join(folder, "**", "*.trace.json.gz"), recursive=True):
            with gzip.open(path, "rt", encoding="utf-8") as file:
                events += json.load(file)["traceEvents"]
    return summarize(operation_seconds(events), instructions(program_text), steps)


def operation_seconds(events: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, float]]:
    """Calls and seconds of each operation: its own, without those of operations that it calls on the same thread.

    Args:
      events: of a Chrome trace; those with `args.hlo_op` count, `ts` and `dur` are microseconds.
    """
    threads = collections.defaultdict(list)
    for event in events:
        name = (event.get("args") or {}).get("hlo_op")
        if event.get("ph") == "X" and name:
            begin = float(event["ts"])
            threads[event["pid"], event["tid"]].append((begin, begin + float(event.get("dur", 0.0)), name))
    calls: collections.Counter[str] = collections.Counter()
    seconds: collections.defaultdict[str, float] = collections.defaultdict(float)
    for spans in threads.values():
        open_spans: list[tuple[float, str]] = []
        for begin, end, name in sorted(spans, key=lambda span: (span[0], -span[1])):
            while open_spans and open_spans[-1][0] <= begin:
                open_spans.pop()
            if open_spans:  # on a GPU the next kernel may begin before the last one ends
                seconds[open_spans[-1][1]] -= 1e-6 * (min(end, open_spans[-1][0]) - begin)
            open_spans.append((end, name))
            calls[name] += 1
            seconds[name] += 1e-6 * (end - begin)
    return {name: (calls[name], seconds[name]) for name in calls}


def instructions(program_text: str) -> dict[str, dict[str, str]]:
    """Name of each instruction of a program's text -> its `opcode`, `shape` and `source` (the path in JAX)."""
    found = {}
    for line in program_text.splitlines():
        match = INSTRUCTION.match(line)
        if match:
            source = OP_NAME.search(line)
            shape = LAYOUT.sub("", match[2])
            found[match[1]] = {"opcode": match[3], "shape": shape, "source": source[1] if source else ""}
    return found


def direction_and_primitive(source: str) -> str:
    """`backward conv_general_dilated` for `jit(f)/transpose(jvp(Net))/conv1/conv_general_dilated`."""
    if not source:
        return "unknown"
    direction = "backward" if "transpose(" in source else "forward"
    return f"{direction} {source.rsplit('/', 1)[-1]}"


def summarize(
    seconds: Mapping[str, tuple[int, float]], known: Mapping[str, Mapping[str, str]], steps: int
) -> dict[str, Any]:
    """`profile`'s result from the seconds of `steps` steps."""
    total = sum(value for _, value in seconds.values())
    unknown = {"opcode": "", "shape": "", "source": ""}
    operations = []
    sources: collections.Counter[str] = collections.Counter()
    for name, (calls, value) in sorted(seconds.items(), key=lambda item: -item[1][1]):
        facts = known.get(name, unknown)
        share = value / total if total else 0.0
        operations.append({"name": name, **facts, "calls": calls / steps, "seconds": value / steps, "share": share})
        sources[direction_and_primitive(facts["source"])] += value / steps  # type: ignore[assignment]
    return {
        "steps": steps,
        "seconds_a_step": total / steps,
        "operations": operations[: 4 * SHOWN],
        "sources": dict(sources.most_common()),
    }


def profile_lines(found: Mapping[str, Any]) -> list[str]:
    """The profile as lines: the most expensive primitives and operations."""
    total = found["seconds_a_step"]
    if not total:
        return ["  the profiler saw no operation on this platform"]
    lines = [f"  profile: {1e3 * total:.1f} ms of operations a step, by primitive:"]
    for name, value in list(found["sources"].items())[:SHOWN]:
        lines.append(f"  {1e3 * value:9.2f} ms {100 * value / total:5.1f} %  {name}")
    lines.append("  by operation:")
    for operation in found["operations"][:SHOWN]:
        cost = f"{1e3 * operation['seconds']:9.2f} ms {100 * operation['share']:5.1f} % {operation['calls']:5.1f} calls"
        lines.append(f"  {cost}  {operation['name']} {operation['shape'][:60]}  {operation['source'][-90:]}")
    return lines
