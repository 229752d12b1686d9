"""`python -m jaxseg.main --config=experiments/deeplab_voc.py[:arg] --mode=train|evaluate|predict|bench`.

Only flags, and what every mode needs before JAX starts; the work is done in `jaxseg.train` and `jaxseg.tools`.
"""

import logging
import os
import pathlib
import re
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

STARTED = time.perf_counter()

from absl import app, flags  # noqa: E402
from absl import logging as absl_logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from jaxseg.core.errors import JaxsegError  # noqa: E402
from jaxseg.core.names import close_matches  # noqa: E402

CONFIG = config_flags.DEFINE_config_file("config", help_string="Experiment file, with an argument after a colon.")
MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate", "predict", "bench"], "What to do.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run. Default: runs/<config>[-<arg>].")
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "evaluate, predict: latest, best, or a step.")
SPLIT = flags.DEFINE_string("split", None, "evaluate: the split. Default: config.data.evaluate_split.")
INPUT = flags.DEFINE_list("input", [], "predict: files, folders or videos, separated by commas.")
OUTPUT = flags.DEFINE_string("output", None, "predict: folder of the pictures. Default: <workdir>/predictions.")
MAX_PIXELS = flags.DEFINE_integer("max_pixels", 2**26, "predict: images of more pixels are refused.", lower_bound=1)
AGAINST = flags.DEFINE_enum("against", "none", ["none", "torchvision", "smp", "torch"], "bench: the same network of.")
CPU_DEVICES = flags.DEFINE_integer("cpu_devices", None, "Number of devices that the CPU is split into.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Several processes, found from SLURM, TPU or MPI variables.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "Several processes: HOST:PORT of process 0.")
PROCESSES = flags.DEFINE_integer("processes", None, "Several processes: how many, with --coordinator.")
PROCESS = flags.DEFINE_integer("process", None, "Several processes: which one this is, with --coordinator.")


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """absl's parser, with a sentence for what it would answer by a traceback."""
    for argument in arguments[1:]:
        match = re.match(r"--config=([^:]+)", argument)
        if match and not pathlib.Path(match[1]).is_file():
            known = [str(p) for p in sorted(pathlib.Path(match[1]).parent.glob("[!_]*.py"))]
            fail(f"--config={match[1]}: there is no such file. {close_matches(match[1], known)}")
    try:
        return flags.FLAGS(list(arguments))
    except flags.Error as error:
        fail(without_traceback(str(error)))
    except (AttributeError, KeyError) as error:
        key, _, hint = str(error.args[0] if error.args else error).replace("\\n", "\n").partition("\n")
        name = key.strip("\"'\\ ")
        hint = hint.strip("' ") or "Look into the config file for the keys that there are."
        fail(f"config has no key {name!r}. {hint}")
    except (TypeError, ValueError) as error:
        fail(f"A --config.… value does not fit its key: {error}")
    raise AssertionError("not reached")


def without_traceback(text: str) -> str:
    """What a failing config file said, and the line of that file, without the frames between."""
    if "Traceback (most recent call last)" not in text:
        return text
    lines = text.strip().splitlines()
    places = [line.strip() for line in lines if line.strip().startswith("File ") and "ml_collections" not in line]
    return lines[0] + "\n" + lines[-1] + ("\n" + places[-1] if places else "")


def speak_plainly() -> None:
    """The project's warnings as `jaxseg: ...` lines; those of the libraries below errors are not for users."""
    absl_logging.set_verbosity(absl_logging.ERROR)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("jaxseg: %(message)s"))
    logger = logging.getLogger("jaxseg")
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False


def fail(sentence: str) -> None:
    """Prints a sentence and exits with status 2."""
    print(f"jaxseg: {sentence}", file=sys.stderr, flush=True)
    sys.exit(2)


def default_workdir(arguments: Sequence[str]) -> str:
    """`runs/deeplab_voc-demo` for `--config=experiments/deeplab_voc.py:demo`."""
    value = next((a.split("=", 1)[1] for a in arguments if a.startswith("--config=")), "run")
    path, _, argument = value.partition(":")
    return str(pathlib.Path("runs") / (pathlib.Path(path).stem + (f"-{argument}" if argument else "")))


def start_jax() -> None:
    """Compilation cache, CPU devices and processes: all that must be set before JAX's first use."""
    import jax

    if MODE.value == "bench":
        # Compilation is timed. PyTorch shares the GPU: JAX must not take three quarters of its memory beforehand.
        jax.config.update("jax_enable_compilation_cache", False)
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    cache = os.environ.get("JAXSEG_CACHE", str(pathlib.Path.home() / ".cache" / "jaxseg"))
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(cache) / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if CPU_DEVICES.value:
        jax.config.update("jax_num_cpu_devices", CPU_DEVICES.value)
    if COORDINATOR.value:
        if PROCESSES.value is None or PROCESS.value is None:
            raise JaxsegError("--coordinator needs --processes and --process beside it.")
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    elif DISTRIBUTED.value:
        jax.distributed.initialize()


def dispatch(config: Any, workdir: pathlib.Path) -> int:
    """Hands over to the mode; returns the exit status."""
    if AGAINST.value != "none" and MODE.value != "bench":
        raise JaxsegError(f"--against={AGAINST.value} belongs to --mode=bench, not to --mode={MODE.value}.")
    start_jax()
    if MODE.value == "train":
        from jaxseg.tools.train import train_mode

        return train_mode(config, workdir, started=STARTED)
    if MODE.value == "evaluate":
        from jaxseg.tools.evaluate import evaluate_mode

        return evaluate_mode(config, workdir, split=SPLIT.value, checkpoint=CHECKPOINT.value)
    if MODE.value == "bench":
        from jaxseg.tools.bench.mode import bench_mode

        return bench_mode(config, workdir, against=AGAINST.value)
    from jaxseg.tools.predict import predict_mode

    output = pathlib.Path(OUTPUT.value) if OUTPUT.value else workdir / "predictions"
    asked: dict[str, Any] = {
        "inputs": INPUT.value,
        "output": output,
        "checkpoint": CHECKPOINT.value,
        "max_pixels": MAX_PIXELS.value,
    }
    return predict_mode(config, workdir, **asked)


def main(arguments: Sequence[str]) -> None:
    """Runs the mode; errors that a user can mend are printed as sentences."""
    speak_plainly()
    if len(arguments) > 1:
        fail(f"{arguments[1]!r} is not a flag; flags look like --mode=train.")
    if CONFIG.value is None:
        fail("--config is missing, for example --config=experiments/deeplab_voc.py:demo")
    workdir = pathlib.Path(WORKDIR.value or default_workdir(sys.argv[1:]))
    try:
        sys.exit(dispatch(CONFIG.value, workdir))
    except JaxsegError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("Interrupted; the last checkpoint is whole.")
    except OSError as error:
        fail(f"{error}. Correct the path or its permissions, or make room on the disk; the last checkpoint is whole.")
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            print("jaxseg: out of memory. Take a smaller config.train.batch_size,", file=sys.stderr)
            print("more config.train.accumulation_steps, or a smaller config.data.crop_size_px.", file=sys.stderr)
        print(f"jaxseg: {type(error).__name__}: {error}", file=sys.stderr)
        print("This is not an error that jaxseg foresees: please report it with the traceback below.", file=sys.stderr)
        traceback.print_exc()
        sys.exit(1)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
