"""From weights of others to figures and pictures; and batch norm's statistics of the training set, from end to end."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from tests.e2e.runs import command, environment, finish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
CONFIG = "experiments/deeplab_voc.py:tf_slim"
SEGNET = """
from experiments.segnet_camvid import get_config as street
from tests.e2e.tiny import get_config as tiny

def get_config(arg=None):
    config, segnet = tiny(), street()
    config.model = segnet.model
    config.model.update({"encoder": ((4, 4), (8, 8), (8,)), "decoder": ((8, 8), (8, 4), (4,))})
    config.evaluate.batch_statistics = segnet.evaluate.batch_statistics
    config.train.update({"total_steps": 4, "ema_decay": 0.0})
    config.optimizer.schedule.warmup_steps = 0
    config.data.workers = 0
    return config
"""


def devkit(shared_data, folder):
    """LabelMe's three VOC photos with their masks as a VOC tree; they are both train and val."""
    source = shared_data / "annotations" / "labelme" / "semantic_segmentation" / "data_dataset_voc"
    target = folder / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass"):
        shutil.copytree(source / name, target / name)
    lists = target / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    names = sorted(path.stem for path in (target / "JPEGImages").iterdir())
    assert len(names) == 3
    for split in ("train", "val"):
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


@pytest.mark.data
def test_converted_weights_evaluate_and_predict(shared_data, tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "log"
    weights = shared_data / "weights" / "deeplabv3_mnv2_os16_voc.npz"
    convert = [sys.executable, "-m", "jaxseg.tools.convert", str(weights), f"--config={CONFIG}", f"--output={workdir}"]
    text = finish(convert, log, expect=2)
    assert "config.weights.table is missing" in text and "Traceback" not in text
    finish([*convert, "--table=tf_slim_deeplab_v3"], log)

    voc = devkit(shared_data, tmp_path / "voc")
    here = (f"--config.data.manual_dir={voc}", f"--config.data.data_dir={tmp_path / 'prepared'}")
    evaluate = [*command(workdir, "--mode=evaluate", config=CONFIG), *here]
    finish(evaluate, log)
    found = json.loads((workdir / "evaluation.json").read_text())
    # tests/weights/test_real_images.py counts the same pixels by itself. An eighth class that is only predicted counts
    # in miou_present, so that 49.1 of the seven there become 42.9.
    assert found["images"] == 3 and found["step"] == 0
    assert found["metrics"]["pixel_accuracy"] > 0.86 and found["metrics"]["miou_present"] > 0.42

    photos = voc / "VOCdevkit" / "VOC2012"
    predict = [*command(workdir, "--mode=predict", config=CONFIG), f"--input={photos / 'JPEGImages'}"]
    text = finish([*predict, f"--output={tmp_path / 'out'}"], log)
    assert "3 images" in text
    hits = pixels = 0
    for path in sorted((photos / "SegmentationClass").iterdir()):
        with Image.open(path) as label, Image.open(tmp_path / "out" / path.name) as ours:
            label, ours = np.asarray(label), np.asarray(ours)
        assert ours.shape == label.shape
        hits, pixels = hits + np.sum((ours == label) & (label < 255)), pixels + np.sum(label < 255)
    # The labels of a prediction are those of an evaluation.
    assert pixels == found["pixels"] and hits / pixels == pytest.approx(found["metrics"]["pixel_accuracy"])


@pytest.mark.data
def test_what_does_not_fit_a_converted_checkpoint_gets_a_sentence(shared_data, tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "log"
    weights = shared_data / "weights" / "deeplabv3_mnv2_os16_voc.npz"
    convert = [sys.executable, "-m", "jaxseg.tools.convert", str(weights), f"--config={CONFIG}"]
    finish([*convert, "--table=tf_slim_deeplab_v3", f"--output={workdir}"], log)
    photo = next((shared_data / "annotations").rglob("JPEGImages/2011_000003.jpg"))
    for flags, words in (
        (("--config.model.name=deeplab_v3plus",), "config.model.name: 'deeplab_v3' there, 'deeplab_v3plus' now"),
        (("--config.train.ema_decay=0.5",), "config.train.ema_decay"),
        (("--config.data.name=camvid",), "config.data.name"),
    ):
        asked = command(workdir, "--mode=predict", f"--input={photo}", *flags, config=CONFIG)
        process = subprocess.run(asked, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=600)
        assert process.returncode == 2 and "Traceback" not in process.stderr, process.stderr[-3000:]
        assert words in process.stderr and "config.weights" not in process.stderr, process.stderr
    for path in (workdir / "checkpoints" / "0" / "state").rglob("*"):
        if path.is_file() and path.stat().st_size > 10_000:
            path.write_bytes(path.read_bytes()[:1000])
    text = finish(command(workdir, "--mode=predict", f"--input={photo}", config=CONFIG), log, expect=2)
    assert "the checkpoint of step 0 cannot be read" in text and "Traceback" not in text


def test_statistics_of_the_training_set_replace_the_running_ones(tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "log"
    config = tmp_path / "segnet.py"
    config.write_text(SEGNET)
    run = command(workdir, config=str(config))
    finish(run, log)
    losses = {}
    for kind in ("running", "recomputed"):
        finish([*run, "--mode=evaluate", f"--config.evaluate.batch_statistics={kind}"], log)
        losses[kind] = json.loads((workdir / "evaluation.json").read_text())
        assert losses[kind]["images"] == 6
    # After four steps the running statistics are still mostly the first ones, 0 and 1.
    assert losses["running"]["confusion"] != losses["recomputed"]["confusion"]
    text = finish([*run, "--mode=evaluate", "--config.evaluate.batch_statistics=recompute"], log, expect=2)
    assert "Did you mean recomputed" in text and "Traceback" not in text
