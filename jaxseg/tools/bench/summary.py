"""What a bench found, as text: the lines that a run prints, and a Markdown table of several."""

from collections.abc import Mapping
from typing import Any

from jaxseg.tools.bench.profile import profile_lines

GIGA = 1e9
UNITS = ("B", "KB", "MB", "GB", "TB")


def bench_text(result: Mapping[str, Any]) -> str:
    """The figures of bench.json as lines."""
    settings, device = result["settings"], result["device"]
    height, width = settings["size_px"]
    lines = [
        f"{settings['model']['name']}, batch {settings['batch_size']} x {height} x {width}, "
        f"{settings['classes']} classes, {settings['compute_dtype']}, {result['parameters'] / 1e6:.2f} M parameters",
        f"{device['devices']} x {device['kind']} ({device['cores']} cores): {device['matrix_rate_flops_s'] / GIGA:.1f} "
        f"GFLOP/s in a matrix product, {device['bandwidth_bytes_s'] / GIGA:.1f} GB/s",
    ]
    if "peer" in result:
        peer = result["peer"]
        versions = ", ".join(f"{name} {version}" for name, version in peer["versions"].items())
        lines.append(f"in turns with {versions}; {peer['parameters'] / 1e6:.2f} M parameters")
        lines += [f"  {peer['note']}"] if "note" in peer else []
    for part, title in (("train", "train step"), ("inference", "inference")):
        if part in result:
            lines += ["", f"{title}:", *part_lines(result[part])]
    if "memory" in result:
        lines += [f"  {name.replace('_', ' ')}: {in_bytes(value)}" for name, value in result["memory"].items()]
    if "input" in result:
        lines += ["", "input pipeline:", *input_lines(result["input"])]
    return "\n".join(lines) + "\n"


def part_lines(found: Mapping[str, Any]) -> list[str]:
    """The lines of the train step or of inference."""
    program, seconds, floor = found["program"], found["seconds"], found["floor"]
    lower, upper = seconds["quartiles"]
    cpu = "share_of_matrix_rate_cpu" in found
    lines = [
        f"  {in_seconds(seconds['median'])} (min {in_seconds(seconds['min'])}, quartiles {in_seconds(lower)} to "
        f"{in_seconds(upper)}, {seconds['steps']} steps), {found['images_per_second']:.2f} images/s",
        f"  processor time {in_seconds(seconds['cpu_median'])} (min {in_seconds(seconds['cpu_min'])})",
    ]
    if "against" in found:
        theirs, ratio = found["peer"]["seconds"], found["against"]
        lines += [
            f"  peer {in_seconds(theirs['median'])} (min {in_seconds(theirs['min'])}), processor time "
            f"{in_seconds(theirs['cpu_median'])}",
            f"  jaxseg / peer {ratio['ratio']:.2f}, of minima {ratio['ratio_of_minima']:.2f}"
            + (f", of processor time {ratio['ratio_of_cpu_medians']:.2f}" if "ratio_of_cpu_medians" in ratio else ""),
        ]
    lines += [
        f"  {program['flops'] / GIGA:.2f} GFLOP ({program['flops_compiled'] / GIGA:.2f} as compiled), "
        f"{100 * found['share_of_matrix_rate']:.0f} % of the matrix rate"
        + (f" ({100 * found['share_of_matrix_rate_cpu']:.0f} % in processor time)" if cpu else ""),
        f"  floor: {in_seconds(floor['flops_seconds'])} by FLOPs, {in_seconds(floor['bytes_seconds'])} by "
        f"{in_bytes(program['bytes_accessed'])} of memory traffic; this is {found['times_floor']:.2f} times the larger",
        f"  lowering {in_seconds(program['lower_seconds'])}, compilation {in_seconds(program['compile_seconds'])}",
    ]
    if program["memory"]:
        memory = program["memory"]
        parts = ", ".join(f"{name} {in_bytes(memory[name])}" for name in memory if name != "total")
        lines.append(f"  memory {in_bytes(memory['total'])} a device ({parts})")
    if "profile" in found:
        lines += profile_lines(found["profile"])
    return lines


def input_lines(found: Mapping[str, Any]) -> list[str]:
    """The lines of the input pipeline."""
    if "skipped" in found:
        return [f"  not measured: {found['skipped']}"]
    return [
        f"  {found['images_per_second']:.1f} images/s alone, with {found['workers']} workers",
        f"  training with it: {in_seconds(found['step_seconds'])} a step, "
        f"{100 * found['input_wait_share']:.1f} % of it waiting for input",
    ]


def in_seconds(value: float) -> str:
    """`1.24 s`, `53.1 ms`, `8.2 us`."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{1e3 * value:.1f} ms" if value >= 1e-3 else f"{1e6 * value:.1f} us"


def in_bytes(value: float) -> str:
    """`1.3 GB`, decimal units."""
    unit = 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {UNITS[unit]}"


def bench_markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of several networks on one machine: ratios, seconds, floors.

    Args:
      results: name of the row -> what bench.json holds; at least one.
    """
    first = next(iter(results.values()))
    made, device = first["made_with"], first["device"]
    versions = {name: made[name] for name in ("jax", "jaxlib", "flax")}
    for result in results.values():
        versions |= result.get("peer", {}).get("versions", {})
    lines = [
        f"# Speed on {device['devices']} x {device['kind']}, {made['date'][:10]}",
        "",
        f"Machine: {made['machine']}. jaxseg {made['git']}, Python {made['python']}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
        "",
        "Medians of steps in turns; ratio = jaxseg / peer, below 1 jaxseg is faster; in brackets that of processor "
        "times. Floor: the larger of FLOPs / matrix rate and bytes / bandwidth, both measured in the same run; "
        "docs/speed.md says what each figure means.",
        "",
        "| network | batch | part | jaxseg | peer | ratio | images/s | floor by FLOPs | by bytes | times the floor |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        lines += [markdown_row(name, result, part) for part in ("train", "inference") if part in result]
    notes = [
        f"- {name}: {result['peer']['note']}" for name, result in results.items() if "note" in result.get("peer", {})
    ]
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"


def markdown_row(name: str, result: Mapping[str, Any], part: str) -> str:
    """One line of the table."""
    settings, found = result["settings"], result[part]
    height, width = settings["size_px"]
    peer, ratio = "-", "-"
    if "against" in found:
        peer, against = in_seconds(found["peer"]["seconds"]["median"]), found["against"]
        ratio = f"{against['ratio']:.2f}"
        if "ratio_of_cpu_medians" in against:
            ratio += f" ({against['ratio_of_cpu_medians']:.2f})"
    cells = [
        *(name, f"{settings['batch_size']} x {height} x {width} {settings['compute_dtype']}", part),
        *(in_seconds(found["seconds"]["median"]), peer, ratio, f"{found['images_per_second']:.2f}"),
        *(in_seconds(found["floor"]["flops_seconds"]), in_seconds(found["floor"]["bytes_seconds"])),
        f"{found['times_floor']:.1f}",
    ]
    return f"| {' | '.join(cells)} |"
