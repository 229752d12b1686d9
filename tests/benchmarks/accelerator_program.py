"""`python -m tests.benchmarks.accelerator_program ROW RESULT.json --gpu=TARGET` or `--tpu=v5e:2x2`: a row's program.

It is compiled where there is no accelerator, and nothing runs: the step, or with `--part=inference` the logits, of
experiments/bench.py's ROW in bfloat16, for one GPU or for all chips of a TPU topology. TARGET holds a GPU's figures (a
text of XLA's GpuTargetConfigProto, as XLA's repository has for each card); its program is compiled without the search
for kernels and without Triton's products. Needs JAX's CUDA plugin or libtpu, of JAX's version; no driver, no device.

Of a GPU's program the bytes of each operation's operands and results are counted; a fusion counts of an operand as many
numbers as its results need, and of an array that it updates in place the update. They are more than what a card moves,
since the cache between operations is left out, and less where few numbers of many lines of memory are read; of its
order they say nothing. Of a TPU's program the result has XLA's own counts, a chip, and the cycles that it expects of
the operations of the main part: of loops, gathers, scatters and windows' maxima none.
"""

import argparse
import collections
import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import re
import shlex
import sys

NUMBERS = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4}
NUMBERS |= {"s64": 8, "u64": 8, "f64": 8}
FREE = ("parameter", "bitcast", "get-tuple-element", "tuple", "constant")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\([^=]*?\)|\S+) ([\w\-]+)\((.*)$")
GPU_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
COLLECTIVE = re.compile(r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# name, type, opcode, what stands behind the bracket
Operation = collections.namedtuple("Operation", ("name", "shape", "opcode", "rest"))


def arrays(shape):
    """(bytes a number, numbers) of a type as programs have it; of a tuple each."""
    for number, sides in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        yield NUMBERS.get(number, 0), math.prod(int(side) for side in sides.split(",") if side)


def size(shape):
    """Bytes of a type; of a tuple the sum."""
    return sum(each * numbers for each, numbers in arrays(shape))


def count(shape):
    """Numbers of a type; of a tuple the sum."""
    return sum(numbers for _, numbers in arrays(shape))


def parse(text):
    """Name -> operations of each computation, and the entry's name."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        if begins := COMPUTATION.match(line):
            current = computations.setdefault(begins[2], [])
            entry = begins[2] if begins[1] else entry
        elif current is not None and (found := OPERATION.match(line)):
            current.append(Operation(*found.groups()))
    return computations, entry


def operands(rest):
    """Names up to the bracket that closes."""
    depth = 1
    for end, letter in enumerate(rest):
        depth += (letter in "([{") - (letter in ")]}")
        if not depth:
            return re.findall(r"%([\w.\-]+)", rest[:end])
    return []


def reads(operation, needed, shapes, numbers):
    """(operand, how many of its numbers) for `needed` of an operation's."""
    names = operands(operation.rest)
    share = needed / max(numbers[operation.name], 1)
    for place, name in enumerate(names):
        if operation.opcode in ("slice", "dynamic-slice", "gather") and place == 0:
            yield name, needed
        elif operation.opcode == "broadcast":
            yield name, min(needed, numbers[name])
        elif operation.opcode == "dynamic-update-slice" and place == 0:
            yield name, share * (numbers[name] - numbers[names[1]])
        else:
            yield name, share * numbers[name]


def of_fusion(body):
    """Bytes that a fusion reads of its operands, and those of its results that stay as they were.

    Of an operand as many numbers as the results need: a slice needs its own, an elementwise operation as many as are
    needed of it. The body's last operation is its result.
    """
    shapes = {operation.name: operation.shape for operation in body}
    numbers = {name: count(shape) for name, shape in shapes.items()}
    made = {operation.name: operation for operation in body}
    needed = collections.Counter({body[-1].name: numbers[body[-1].name]})
    read = kept = 0
    for operation in reversed(body):
        wanted = min(needed[operation.name], numbers[operation.name])
        if operation.opcode == "parameter":
            read += wanted * size(operation.shape) / max(numbers[operation.name], 1)
            continue
        parts = dict(reads(operation, wanted, shapes, numbers))
        if operation.opcode == "dynamic-update-slice":
            array, update = operands(operation.rest)[:2]
            source = made[array]
            while source.opcode == "bitcast":
                source = made[operands(source.rest)[0]]
            if source.opcode == "parameter":  # in place
                kept += size(operation.shape) - size(shapes[update])
                parts.pop(array)
        needed.update(parts)
    return round(read), kept


def moved(text):
    """Kind of operation -> bytes, number of operations."""
    computations, entry = parse(text)
    shapes = {operation.name: operation.shape for operation in computations[entry]}
    kinds = collections.defaultdict(lambda: [0, 0])
    for operation in computations[entry]:
        if operation.opcode in FREE:
            continue
        read, kept = sum(size(shapes.get(name, "")) for name in operands(operation.rest)), 0
        kind = operation.opcode
        if kind == "fusion":
            read, kept = of_fusion(computations[re.search(r"calls=%?([\w.\-]+)", operation.rest)[1]])
            kind = re.search(r"kind=k(\w+)", operation.rest)[1] + " fusion" + " of a sum" * ("reduce" in operation.name)
        elif kind == "custom-call":
            kind = re.search(r'custom_call_target="([^"]+)"', operation.rest)[1]
            if "matmul" in kind:
                kind += f" to {re.search(r'[a-z]+[0-9]+', operation.shape)[0]}"
        kinds[kind][0] += read + size(operation.shape) - kept
        kinds[kind][1] += 1
    return dict(sorted(kinds.items(), key=lambda item: -item[1][0]))


def devices_of(arguments):
    """What the program is compiled for."""
    from jax.experimental import topologies

    if arguments.tpu:
        return topologies.get_topology_desc(platform="tpu", topology_name=arguments.tpu).devices
    target = arguments.gpu.read_text(encoding="utf-8")
    card = topologies.get_topology_desc(platform="cuda", topology_name="", target_config=target, topology="1x1x1")
    return card.devices[:1]


def compile_row(row, part, devices):
    """The executable of experiments/bench.py's row, and the versions."""
    from experiments.bench import get_config
    from jaxseg.core.mesh import make_mesh
    from jaxseg.tools.bench import program
    from jaxseg.train.run import make_run, make_training
    from jaxseg.train.state import placed_shapes
    from jaxseg.train.workdir import versions

    config = get_config(row)
    config.weights.path, config.train.compute_dtype = "", "bfloat16"
    run = make_run(config.copy_and_resolve_references(), open_data=False)
    run = dataclasses.replace(run, mesh=make_mesh(devices=list(devices)))
    training = make_training(run)
    state, batch = placed_shapes(training.abstract, run.mesh), program.shapes_on(run.mesh, program.random_batch(run))
    if part == "train":
        return training.step.lower(state, batch).compile(), versions()
    variables = state.variables()
    return program.jitted_logits(run, variables).lower(variables, batch["image"]).compile(), versions()


def counted(compiled, gpu):
    """What the result says of an executable."""
    text, memory = compiled.as_text(), compiled.memory_analysis()
    found = {
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "collectives": dict(collections.Counter(COLLECTIVE.findall(text))),
    }
    if not gpu:
        costs, entry = compiled.cost_analysis(), text[text.index("\nENTRY") :]
        cycles = sum(int(number) for number in CYCLES.findall(entry))
        return found | {"flop": costs["flops"], "bytes": costs["bytes accessed"], "expected_cycles": cycles}
    kinds = moved(text)
    each = {kind: {"bytes": bytes_of, "operations": number} for kind, (bytes_of, number) in kinds.items()}
    return found | {"bytes": sum(bytes_of for bytes_of, _ in kinds.values()), "kinds": each}


def parsed():
    """The arguments; ends with a sentence where something is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row")
    parser.add_argument("result", type=pathlib.Path)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--gpu", type=pathlib.Path)
    target.add_argument("--tpu")
    parser.add_argument("--part", choices=("train", "inference"), default="train")
    arguments = parser.parse_args()
    if arguments.tpu:
        if not importlib.util.find_spec("libtpu"):
            parser.error('libtpu is missing: pip install "jax[tpu]" of JAX\'s version.')
    elif not arguments.gpu.is_file():
        parser.error(f"{arguments.gpu} is not there; XLA's repository has one for each card (target_config/specs).")
    elif not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        parser.error(
            'JAX\'s CUDA plugin is missing: pip install "jax-cuda13-plugin" and "jax-cuda13-pjrt" of JAX\'s version.'
        )
    return arguments


def main():
    """Compiles, counts, writes."""
    arguments = parsed()
    os.environ |= {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"}
    if arguments.gpu:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {GPU_FLAGS}"
    compiled, versions = compile_row(arguments.row, arguments.part, devices_of(arguments))
    result = {
        "command": shlex.join(["python", "-m", "tests.benchmarks.accelerator_program", *sys.argv[1:]]),
        "made_with": versions,
        "row": arguments.row,
        "part": arguments.part,
        **counted(compiled, gpu=bool(arguments.gpu)),
    }
    arguments.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
