"""What a prediction in windows holds does not grow with the picture, but for the picture itself."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY

CLASSES = 21
PROGRAM = """
import resource, sys
import flax.linen as nn, jax, jax.numpy as jnp
jax.config.update("jax_platforms", "cpu")
from jaxseg.core.types import DatasetInfo
from jaxseg.inference.predictor import Predictor
from jaxseg.tools.predict import predict_files

class Classes(nn.Module):
    def __call__(self, image, *, train):
        return {"logits": jnp.tile(image, (1, 1, 1, 7))}

info = DatasetInfo("many", tuple(map(str, range(21))), tuple((i, i, i) for i in range(21)), void=255)
model = Predictor(model=Classes(), mean=(99.0,) * 3, std=(50.0,) * 3, num_classes=21, window_px=(256, 256))
report = predict_files(model, {}, info, sys.argv[1], sys.argv[2])
assert report.images == 1, report
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak(picture, output):
    """Largest resident memory of a process that predicts the picture, in bytes."""
    command = [sys.executable, "-c", PROGRAM, str(picture), str(output)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}  # of the tests: little optimisation
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has kilobytes on Linux alone")
def test_the_peak_grows_by_the_picture_alone(tmp_path):
    sizes, peaks = ((600, 1000), (8600, 1000)), []
    for height, width in sizes:
        image = np.random.default_rng(0).integers(0, 256, (height, width, 1)).astype(np.uint8).repeat(3, axis=2)
        Image.fromarray(image).save(tmp_path / f"{height}.png", compress_level=1)
        peaks.append(peak(tmp_path / f"{height}.png", tmp_path / "out"))
        with Image.open(tmp_path / "out" / f"{height}.png") as label:
            assert label.size == (width, height)
    pixels = (sizes[1][0] - sizes[0][0]) * sizes[0][1]
    grown = (peaks[1] - peaks[0]) / pixels
    print(f"peaks {peaks[0] / 2**20:.0f} and {peaks[1] / 2**20:.0f} MiB: {grown:.1f} bytes a pixel more")
    # The file (1), the picture (3), the overlay (3), and Pillow's 4 while it decodes or encodes: probabilities of the
    # whole picture would be 4 a class.
    assert grown < 20 < 4 * CLASSES
