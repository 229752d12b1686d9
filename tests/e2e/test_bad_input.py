"""What a user can get wrong on the command line: a sentence that says what to do, status 2, and no traceback."""

import json

import pytest

from tests.e2e.runs import command, finish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MISTAKES = {
    "config key": (["--config.train.totl_steps=3"], "total_steps"),
    "config section": (["--config.trian.total_steps=3"], "train"),
    "config value": (["--config.train.total_steps=many"], "total_steps"),
    "flag": (["--wrokdir=x"], "wrokdir"),
    "mode": (["--mode=trian"], "train"),
    "model name": (["--config.model.name=deeplab_v3pls"], "deeplab_v3plus"),
    "backbone name": (["--config.model.backbone=mobilenet_v22"], "mobilenet_v2"),
    "data set name": (["--config.data.name=shape"], "shapes"),
    "dtype": (["--config.train.compute_dtype=bfloat"], "bfloat16"),
    "batch and devices": (["--cpu_devices=3"], "config.train.batch_size = 4 does not divide by 3"),
    "count": (["--config.evaluate.every_steps=0"], "config.evaluate.every_steps = 0 must be at least 1"),
    "mesh": (["--config.mesh.fsdp=3"], "does not fit"),
    "split": (["--config.data.train_split=trian"], "train"),
    "weights": (["--config.weights.path=nowhere.npz", "--config.weights.table=torchvision_resnet"], "nowhere.npz"),
    "predict without input": (["--mode=predict"], "--input"),
    "evaluate before training": (["--mode=evaluate"], "Train"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_a_sentence(tmp_path, mistake):
    flags, words = MISTAKES[mistake]
    text = finish(command(tmp_path / "run", *flags), tmp_path / "log", expect=2)
    assert words in text, text
    assert "Traceback" not in text, text


def test_a_data_set_that_must_be_brought_says_what_to_put_where(tmp_path):
    text = finish(command(tmp_path / "run", config="experiments/deeplab_camvid.py"), tmp_path / "log", expect=2)
    assert "config.data.manual_dir" in text and "Traceback" not in text


def test_a_missing_config_file_lists_the_near_ones(tmp_path):
    text = finish(command(tmp_path, config="experiments/deeplab_vok.py"), tmp_path / "log", expect=2)
    assert "experiments/deeplab_voc.py" in text and "Traceback" not in text


def test_a_work_directory_of_another_config_lists_what_differs(tmp_path):
    start = "--config.optimizer.schedule.warmup_steps=0"
    finish(command(tmp_path, start, "--config.train.total_steps=2"), tmp_path / "log")
    changed = ("--config.train.total_steps=3", "--config.optimizer.schedule.base=0.5")
    flags = (start, *changed, "--config.train.log_every_steps=2")
    text = finish(command(tmp_path, *flags), tmp_path / "log2", expect=2)
    assert "config.train.total_steps: 2 there, 3 now" in text
    assert "config.optimizer.schedule.base: 0.003 there, 0.5 now" in text
    assert "log_every_steps" not in text
    assert json.loads((tmp_path / "config.json").read_text())["train"]["total_steps"] == 2


def test_a_loss_that_is_not_finite_stops_with_step_and_examples(tmp_path):
    flags = ("--config.optimizer.schedule.base=1e38", "--config.optimizer.schedule.warmup_steps=0")
    text = finish(command(tmp_path, *flags), tmp_path / "log", expect=2)
    assert "The loss is" in text and " at step " in text and "on the examples" in text
    assert "Traceback" not in text
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


def test_a_work_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    text = finish(command(tmp_path / "file" / "run"), tmp_path / "log", expect=2)
    assert str(tmp_path / "file") in text and "Correct the path" in text and "Traceback" not in text


def test_a_mistyped_loss_does_not_keep_the_work_directory(tmp_path):
    """The run is refused before it claims the folder: the corrected config starts there."""
    config = tmp_path / "typo.py"
    config.write_text(
        "from tests.e2e.tiny import get_config as tiny\n\n\n"
        "def get_config(arg=None):\n    config = tiny()\n    config.loss = {'cross_entropi': 1.0}\n    return config\n"
    )
    text = finish(command(tmp_path / "run", config=str(config)), tmp_path / "log", expect=2)
    assert "Did you mean cross_entropy" in text
    assert not (tmp_path / "run" / "config.json").exists()
