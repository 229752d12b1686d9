"""Conversion: what the checkpoint gives back, the parity check in either layout, and every refusal."""

import pathlib

import jax
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.tools import convert
from jaxseg.tools.restore import restore_variables
from jaxseg.train.workdir import read_config
from jaxseg.weights.tables import tf_slim_deeplab_v3

CONFIG = """
from experiments.defaults import INCEPTION, defaults
from ml_collections import ConfigDict

def get_config(arg=None):
    config = defaults()
    config.model = ConfigDict({"name": "deeplab_v3", "backbone": "mobilenet_v2", "backbone_options": {"width": 0.1},
                               "aspp_rates": (), "aspp_channels": 8, "norm_epsilon": 1e-3, **INCEPTION})
    config.data.update({"name": "shapes", "crop_size_px": (33, 33)})
    return config
"""

# ml_collections loads the file the old way.
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A config, weights in TF-slim's names, and the logits of the network that holds them."""
    folder = tmp_path_factory.mktemp("convert")
    (folder / "tiny.py").write_text(CONFIG, encoding="utf-8")
    convert.VALUES(["convert", f"--config={folder / 'tiny.py'}"])
    run = convert.make_run(convert.CONFIG.value, open_data=False)
    shapes = jax.eval_shape(run.initialize, jax.random.key(0))
    rng = np.random.default_rng(0)

    def random(path, leaf):
        low, high = (0.5, 1.5) if path[-1].key in ("var", "scale") else (-0.5, 0.5)
        return rng.uniform(low, high, leaf.shape).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(random, shapes)
    arrays = {}
    for path, value in jax.tree_util.tree_flatten_with_path(variables)[0]:
        source = tf_slim_deeplab_v3.TABLE["/".join(key.key for key in path)]
        # TF-slim's one hook, of depthwise kernels, is its own inverse.
        arrays[source.name] = value if source.hook is None else source.hook(value)
    np.savez(folder / "weights.npz", **arrays)
    image = rng.integers(0, 256, (2, 33, 47, 3)).astype(np.uint8)
    pixels = (image.astype(np.float32) - 127.5) / 127.5
    logits = np.asarray(jax.jit(lambda v, x: run.model.apply(v, x, train=False)["logits"])(variables, pixels))
    np.savez(folder / "check.npz", image=image, logits=logits)
    np.savez(folder / "first.npz", image=pixels.transpose(0, 3, 1, 2), logits=logits.transpose(0, 3, 1, 2))
    np.savez(folder / "off.npz", image=image, logits=logits * 1.01)
    np.savez(folder / "small.npz", image=image[:, :32], logits=logits)
    np.savez(folder / "gray.npz", image=image[..., :1], logits=logits)
    np.savez(folder / "names.npz", x=image)
    return folder, run, variables


def command(folder, output, *more, source="weights.npz", table="tf_slim_deeplab_v3"):
    for flag in ("check", "table"):
        convert.VALUES[flag].unparse()
    arguments = ["convert", str(folder / source), f"--config={folder / 'tiny.py'}", f"--output={output}"]
    convert.run_command([*arguments, f"--table={table}", *more])


def test_what_is_written_can_be_restored(folder, tmp_path, capsys):
    folder, run, variables = folder
    command(folder, tmp_path / "run", f"--check={folder / 'check.npz'}")
    assert float(capsys.readouterr().out.split("logits: ")[1].split(" of")[0]) < 1e-5
    restored, step = restore_variables(run, tmp_path / "run", "best")
    assert step == 0
    jax.tree.map(np.testing.assert_array_equal, restored, variables)
    assert read_config(tmp_path / "run")["weights"]["table"] == "tf_slim_deeplab_v3"
    with pytest.raises(JaxsegError, match="has checkpoints already"):
        command(folder, tmp_path / "run")


def test_the_check_takes_either_layout_and_tells_the_relative_difference(folder):
    folder, run, variables = folder
    assert convert.relative_difference(run, variables, folder / "first.npz") < 1e-5
    assert convert.relative_difference(run, variables, folder / "off.npz") == pytest.approx(0.01 / 1.01, rel=1e-2)


@pytest.mark.parametrize(
    "check, message",
    [
        ("off.npz", r"more than --tolerance=0.0001.*Nothing was written"),
        ("small.npz", "our shape is"),
        ("gray.npz", "no batch of images with 3 channels"),
        ("names.npz", "should hold the arrays `image` and `logits`, not x"),
        ("none.npz", "no such file"),
    ],
)
def test_a_check_that_fails_writes_nothing(folder, check, message, tmp_path):
    with pytest.raises(JaxsegError, match=message):
        command(folder[0], tmp_path / "run", f"--check={folder[0] / check}")
    assert not (tmp_path / "run").exists()


def test_what_is_refused(folder, tmp_path, monkeypatch, capsys):
    with pytest.raises(JaxsegError, match="config.weights.table is missing"):
        command(folder[0], tmp_path / "run", table="")
    with pytest.raises(JaxsegError, match="another architecture's"):
        command(folder[0], tmp_path / "run", source="check.npz")
    with pytest.raises(JaxsegError, match="takes one SOURCE"):
        convert.run_command(["convert", "a", "b"])
    assert not pathlib.Path(tmp_path / "run").exists()
    monkeypatch.setattr("sys.argv", ["convert"])
    with pytest.raises(SystemExit, match="2"):
        convert.main()
    assert "jaxseg: python -m jaxseg.tools.convert takes one SOURCE" in capsys.readouterr().err
