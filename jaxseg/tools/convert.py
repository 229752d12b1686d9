"""`python -m jaxseg.tools.convert SOURCE --config=FILE.py[:arg] [--table=...] [--check=FILE.npz] --output=DIR`.

Writes a work directory whose checkpoint, of step 0, holds another project's weights in the config's network, so that
`python -m jaxseg.main --config=... --mode=evaluate` (or predict) `--workdir=DIR` uses them.

SOURCE is a PyTorch, .safetensors or .npz file, or a name of jaxseg.weights.catalog. With --check the network is first
compared with the original: FILE.npz holds `image`, what the original was given (bytes before normalisation, or floats
after it), and `logits`, what it gave at the image's size; channels last, or first as PyTorch has them. Where the
largest difference is more than --tolerance of the largest logit, nothing is written and the exit status is 2.
"""

import functools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from jaxseg.core.errors import JaxsegError
from jaxseg.core.normalize import normalize
from jaxseg.train.checkpoint import CheckpointStore
from jaxseg.train.run import Run, make_run, make_training
from jaxseg.train.state import place_state
from jaxseg.train.workdir import claim
from jaxseg.weights.catalog import locate
from jaxseg.weights.load import load_weights
from jaxseg.weights.parity import largest_differences
from jaxseg.weights.readers import read_arrays

VALUES = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file("config", help_string="Experiment file.", flag_values=VALUES)
TABLE = flags.DEFINE_string("table", "", "Name table; needed where SOURCE is a file.", flag_values=VALUES)
OUTPUT = flags.DEFINE_string("output", None, "Work directory to write.", flag_values=VALUES)
CHECK = flags.DEFINE_string("check", None, "An .npz file with `image` and `logits`.", flag_values=VALUES)
TOLERANCE = flags.DEFINE_float("tolerance", 1e-4, "Largest difference over largest logit.", flag_values=VALUES)


def write_checkpoint(run: Run, variables: Any, output: pathlib.Path) -> None:
    """Writes variables as the checkpoint of step 0 of a new work directory.

    Args:
      run: the run that the work directory is for.
      variables: all of its network's.
      output: the work directory; it must not have checkpoints yet.

    Raises:
      JaxsegError: an output that is in use.
    """
    if (output / "checkpoints").exists():
        raise JaxsegError(f"{output} has checkpoints already. Give another --output.")
    state = make_training(run).create(variables)
    claim(output, run.config.to_dict())
    store = CheckpointStore(output)
    store.save(place_state(state, run.mesh), {}, step=0)
    store.close()


def load_network(config: Any, source: str, *, table: str = "") -> tuple[Run, Any]:
    """The config's run and the variables of its whole network out of `source`.

    Args:
      config: the experiment; its `weights` are replaced by `source` and `table` for the whole network.
      source: a file, or a name of the catalog.
      table: name table, "" for the catalog's.

    Raises:
      JaxsegError: what `jaxseg.weights.load.load_weights` refuses.
    """
    file, table = locate(source, table)
    with config.unlocked():
        config.weights.update({"path": str(file), "table": table, "scope": "", "skip": ""})
    run = make_run(config, open_data=False)
    shapes = jax.eval_shape(run.initialize, jax.random.key(0))
    settings = {"image_mean": run.image_mean, "image_std": run.image_std}
    return run, load_weights(file, shapes, table=table, network=run.model, settings=settings)


def relative_difference(run: Run, variables: Any, check: pathlib.Path) -> float:
    """`max |ours - theirs| / max |theirs|` of the logits in `check`.

    Raises:
      JaxsegError: no arrays `image` and `logits` in the file, or shapes that do not belong to the network.
    """
    arrays = read_arrays(check)
    if not {"image", "logits"} <= set(arrays):
        raise JaxsegError(f"--check={check} should hold the arrays `image` and `logits`, not {', '.join(arrays)}.")
    image, theirs = _channels_last(arrays["image"], 3), _channels_last(arrays["logits"], run.info.num_classes)
    pixels = np.asarray(image, np.float32)
    if image.dtype == np.uint8:
        pixels = np.asarray(normalize(image, mean=run.image_mean, std=run.image_std))
    outputs: Any = jax.jit(functools.partial(run.model.apply, train=False))(variables, pixels)
    difference = largest_differences({"logits": outputs["logits"]}, {"logits": theirs})["logits"]
    return difference / float(np.max(np.abs(theirs)))


def _channels_last(array: np.ndarray, channels: int) -> np.ndarray:
    """`[b, h, w, channels]` of that or of `[b, channels, h, w]`."""
    if array.ndim == 4 and array.shape[-1] != channels and array.shape[1] == channels:
        return np.moveaxis(array, 1, -1)
    if array.ndim != 4 or array.shape[-1] != channels:
        raise JaxsegError(f"--check: an array of shape {array.shape} is no batch of images with {channels} channels.")
    return array


def run_command(arguments: Sequence[str]) -> None:
    """Converts, after the check where there is one.

    Args:
      arguments: the command line; its first item is the program.
    """
    _, *sources = VALUES(list(arguments))
    if len(sources) != 1 or CONFIG.value is None or OUTPUT.value is None:
        raise JaxsegError("python -m jaxseg.tools.convert takes one SOURCE, --config=FILE.py and --output=DIR.")
    run, variables = load_network(CONFIG.value, sources[0], table=TABLE.value)
    if CHECK.value:
        difference = relative_difference(run, variables, pathlib.Path(CHECK.value))
        print(f"Largest difference of the logits: {difference:.2e} of the largest one.")
        if not difference <= TOLERANCE.value:
            raise JaxsegError(
                f"That is more than --tolerance={TOLERANCE.value:g}: the network is not the original's. Nothing was "
                "written. Compare the options (alignment, epsilon, padding, rates) and the image's normalisation."
            )
    write_checkpoint(run, variables, pathlib.Path(OUTPUT.value))
    print(f"Written: {OUTPUT.value}. Use it with --workdir={OUTPUT.value}.")


def main() -> None:
    """Runs the command; prints what is wrong as a sentence, with exit status 2."""
    from jaxseg.main import speak_plainly

    speak_plainly()
    try:
        run_command(sys.argv)
    except (JaxsegError, flags.Error) as error:
        print(f"jaxseg: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
