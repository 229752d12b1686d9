"""`python -m tests.benchmarks.memory RESULT.json`: what compiled training programs hold, by XLA's memory analysis.

Programs are lowered from shapes and compiled for the CPU; none runs but in part `time`. Part `loss`: value and
gradient, by the coarse logits, of enlarging and cross-entropy at 8 x 1024 x 1024 x 150, at once and by blocks of rows.
Part `time`: the same at 512 x 512, in turns in one process, in seconds. Part `step`: the train step of networks with
and without `remat` and `loss_block_rows`. Peak is arguments + results + temporaries, what is donated counted once.
Part `kept`: bytes that differentiation keeps from the forward pass for the backward pass, before any compiler; `step`
shows what XLA's CPU compiler makes of it.
"""

import argparse
import datetime
import importlib.metadata
import json
import pathlib
import platform
import shlex
import sys
import time

PARTS = ("loss", "time", "kept", "step")
CLASSES, ROWS, SIZE = 150, 8, 1024
# Name -> model, options, classes, batch, side in pixels.
STEPS = {
    "DeepLabV3+ MobileNetV2, 4 x 512 x 512, 21 classes": ("deeplab_v3plus", {"backbone": "mobilenet_v2"}, 21, 4, 512),
    "DeepLabV3+ ResNet-50, 4 x 512 x 512, 150 classes": ("deeplab_v3plus", {"backbone": "resnet50"}, 150, 4, 512),
    "FC-DenseNet56, 3 x 224 x 224, 11 classes": (
        "tiramisu",
        {"layers": (4,) * 11, "growth_rate": 12, "first_channels": 48},
        11,
        3,
        224,
    ),
}


def bytes_of(compiled):
    """XLA's figures of a compiled program, in bytes."""
    found = compiled.memory_analysis()
    names = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes", "alias_size_in_bytes")
    arguments, outputs, temporaries, aliased = (getattr(found, name) for name in names)
    return {
        "arguments": arguments,
        "results": outputs,
        "temporaries": temporaries,
        "aliased": aliased,
        "peak": arguments + outputs + temporaries - aliased,
    }


def compiled(function, *arguments):
    """The bytes of the function compiled for such arguments, and the seconds that compiling took."""
    began = time.perf_counter()
    program = function.lower(*arguments).compile()
    return bytes_of(program) | {"compile_seconds": round(time.perf_counter() - began, 1)}


def loss_program(terms, coarse_side, block_rows, *, size=SIZE, rows=ROWS, classes=CLASSES):
    """Value and gradient by coarse logits; block_rows 0: through logits at full size. Returns bytes."""
    import jax
    import jax.numpy as jnp

    from jaxseg.core.coarse import CoarseLogits
    from jaxseg.core.masks import valid_mask
    from jaxseg.losses.composition import compose
    from jaxseg.ops.resize import resize

    loss = compose(terms)

    def value(coarse, labels):
        where = valid_mask(labels, num_classes=classes)
        if block_rows:
            return loss.by_rows(CoarseLogits(coarse, "align_corners"), labels, where=where, rows=block_rows)[0]
        return loss(resize(coarse, (size, size), alignment="align_corners"), labels, where=where)[0]

    coarse = jax.ShapeDtypeStruct((rows, coarse_side, coarse_side, classes), jnp.float32)
    labels = jax.ShapeDtypeStruct((rows, size, size), jnp.int32)
    return compiled(jax.jit(jax.value_and_grad(value)), coarse, labels)


def losses():
    """Each loss at stride 16, cross-entropy at 4 and 8 as well, plain and in blocks of 16 rows."""
    cases = [({"cross_entropy": 1.0}, 16), ({"cross_entropy": 1.0}, 8), ({"cross_entropy": 1.0}, 4)]
    cases += [({name: 1.0}, 16) for name in ("ohem_cross_entropy", "focal")]
    cases += [({"dice": {"per_image": False}}, 16), ({"cross_entropy": 1.0, "dice": 0.5}, 16)]
    found = {}
    for terms, stride in cases:
        name = f"{' + '.join(terms)}, {ROWS} x {SIZE} x {SIZE} x {CLASSES}, stride {stride}"
        found[name] = {
            "at_once": loss_program(terms, SIZE // stride, 0),
            "blocks_of_16_rows": loss_program(terms, SIZE // stride, 16),
        }
        show(name, found[name])
    return found


def times(size=512, turns=7):
    """Minimal seconds of several turns, by the clock and of all threads: {case: {"at_once" or rows: {wall, cpu}}}."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxseg.core.coarse import CoarseLogits
    from jaxseg.losses.composition import compose
    from jaxseg.ops.resize import resize

    rng, loss, found = np.random.default_rng(0), compose({"cross_entropy": 1.0}), {}
    for rows, classes in ((2, 21), (1, 150)):
        coarse = jnp.asarray(rng.normal(size=(rows, size // 16, size // 16, classes)), jnp.float32)
        labels = jnp.asarray(rng.integers(0, classes, (rows, size, size)), jnp.int32)
        plain = lambda x, y: loss(resize(x, (size, size), alignment="align_corners"), y)[0]  # noqa: E731
        works = {"at_once": jax.jit(jax.value_and_grad(plain))}
        for height in (8, 16, 32, 64, 128):
            blocks = lambda x, y, n=height: loss.by_rows(CoarseLogits(x, "align_corners"), y, rows=n)[0]  # noqa: E731
            works[f"{height} rows"] = jax.jit(jax.value_and_grad(blocks))
        seconds = {name: [] for name in works}
        for turn in range(turns + 1):
            for name, work in works.items():
                began = time.perf_counter(), time.process_time()
                jax.block_until_ready(work(coarse, labels))
                if turn:  # the first one compiles
                    seconds[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
        case = f"{rows} x {size} x {size} x {classes}, stride 16"
        found[case] = {
            name: {"wall": round(min(w for w, _ in s), 4), "cpu": round(min(c for _, c in s), 4)}
            for name, s in seconds.items()
        }
        print(case, found[case], flush=True)
    return found


def step_program(name, options, classes, rows, side, *, remat, block_rows):
    """The train step (SGD with momentum, moving average) of a network. Returns bytes."""
    import jax
    import jax.numpy as jnp

    from jaxseg.core.mesh import make_mesh
    from jaxseg.core.names import resolve
    from jaxseg.losses.composition import compose
    from jaxseg.train.bundle import small_on
    from jaxseg.train.objectives.supervised import build
    from jaxseg.train.optim import make_optimizer
    from jaxseg.train.state import create_state
    from jaxseg.train.step import make_train_step

    model = resolve("models", name)(num_classes=classes, remat=remat, **options)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(lambda k, x: model.init({"params": k, "dropout": k}, x, False), jax.random.key(0), image)
    choices = {
        "name": "sgd",
        "momentum": 0.9,
        "schedule": {"name": "constant", "base": 0.1},
        "rules": [{"pattern": "."}],
    }
    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer(choices, shapes["params"], total_steps=100, clip_norm=0.0, small=small_on(mesh))
    objective = build(
        model=model,
        loss=compose({"cross_entropy": 1.0}),
        loss_aux_weight=0.0,
        image_mean=(127.5,) * 3,
        image_std=(127.5,) * 3,
        num_classes=classes,
        loss_block_rows=block_rows,
    )
    state = jax.eval_shape(lambda v: create_state(v, optimizer, seed=0, ema=True), shapes)
    step = make_train_step(objective, optimizer, state=state, mesh=mesh, ema_decay=0.9)
    batch = {
        "image": jax.ShapeDtypeStruct((rows, side, side, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((rows, side, side), jnp.int32),
    }
    return compiled(step, state, batch)


def steps():
    """Each network: plain, the loss by blocks, remat, both."""
    found = {}
    for title, (name, options, *sizes) in STEPS.items():
        found[title] = {}
        for remat in (False, True):
            for rows in (0, 16):
                case = f"remat = {remat}, loss_block_rows = {rows}"
                found[title][case] = step_program(name, options, *sizes, remat=remat, block_rows=rows)
                show(title, {case: found[title][case]})
    return found


def kept():
    """Bytes of the residuals of each network's logits (parameters not counted), with and without remat."""
    import jax
    import jax.numpy as jnp

    from jaxseg.core.names import resolve

    found = {}
    for title, (name, options, classes, rows, side) in STEPS.items():
        found[title] = {}
        image = jax.ShapeDtypeStruct((rows, side, side, 3), jnp.float32)
        for remat in (False, True):
            model = resolve("models", name)(num_classes=classes, remat=remat, **options)
            keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
            variables = jax.eval_shape(lambda x, m=model, k=keys: m.init(k, x, False), image)

            def residuals(params, rest, x, m=model, k=keys["dropout"]):
                def logits(params):
                    outputs, _ = m.apply(
                        {**rest, "params": params}, x, True, mutable=["batch_stats"], rngs={"dropout": k}
                    )
                    return outputs["coarse/logits"].values if "coarse/logits" in outputs else outputs["logits"]

                return jax.vjp(logits, params)[1]

            rest = {key: value for key, value in variables.items() if key != "params"}
            leaves = jax.tree.leaves(jax.eval_shape(residuals, variables["params"], rest, image))
            size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if not is_key(leaf))
            own = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables["params"]))
            found[title][f"remat = {remat}"] = size - own
            print(f"{title}: remat = {remat}: {(size - own) / 1e6:.1f} MB kept", flush=True)
    return found


def is_key(leaf):
    """Whether it holds random keys."""
    import jax

    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def show(title, figures):
    """One line a program."""
    for name, figure in figures.items():
        megabytes = {key: round(figure[key] / 1e6, 1) for key in ("peak", "temporaries", "aliased")}
        print(f"{title}: {name}: {megabytes} MB, compiled in {figure['compile_seconds']} s", flush=True)


def main():
    """Writes the figures of the chosen parts."""
    import jax

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=pathlib.Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--machine", default="")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    result = {
        "command": shlex.join(("python", "-m", "tests.benchmarks.memory", *sys.argv[1:])),
        "date": datetime.date.today().isoformat(),
        "machine": arguments.machine or platform.processor(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")},
        "what": "bytes by XLA's memory analysis of programs compiled for the CPU, float32; `time` in seconds, minima",
    }
    work = {"loss": losses, "time": times, "kept": kept, "step": steps}
    result |= {part: work[part]() for part in arguments.parts}
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
