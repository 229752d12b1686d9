"""SegNet (arXiv 1511.00561) and SegNet-Basic (1505.07293) on CamVid, 11 classes, from random weights.

Command: python -m jaxseg.main --config=experiments/segnet_camvid.py --config.data.manual_dir=../shared/data/camvid
         python -m jaxseg.main --config=experiments/segnet_camvid.py:basic
         python -m jaxseg.main --config=experiments/segnet_camvid.py:scnet    (a reconstruction; no published figures)
The authors' published setting: 367 images of 360 x 480, SGD with momentum 0.9, weight decay 5e-4, batch 4, rate 1e-3
for 40,000 steps (Basic: 0.1 for 10,000), cross-entropy with their class weights over the number of valid pixels, and
batch norm's statistics recomputed over the training set for the test. Their encoder starts from VGG-16's weights.
Expected: SegNet-Basic 62 class accuracy, 46 to 47 mIoU on the test split (the paper's table 2); SegNet 60.1 mIoU with
3,500 further training images that are not public. Not measured here; this data set's archive has no test split.
"""

from ml_collections import ConfigDict

from experiments.defaults import IMAGENET, defaults

# In the order of the data set's classes: sky, building, pole, road, ..., bicyclist. As published: they are not these
# eleven classes' own median frequencies, among which one would be 1.
CLASS_WEIGHTS = (0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614)
MODELS = {None: "segnet", "basic": "segnet_basic", "scnet": "scnet_recon"}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; the argument is `basic`, `scnet` or none."""
    if arg not in MODELS:
        raise ValueError(f"experiments/segnet_camvid.py takes basic, scnet or no argument, not {arg!r}")
    config = defaults()
    config.model = ConfigDict({"name": MODELS[arg], **IMAGENET})
    config.loss = ConfigDict({"cross_entropy": {"class_weights": CLASS_WEIGHTS, "normalizer": "valid_pixels"}})
    config.data.update(
        {
            "name": "camvid",
            "crop_size_px": (360, 480),
            "scale_range": (1.0, 1.0),
            "flip_probability": 0.0,
            "evaluate_size_px": (360, 480),
        }
    )
    basic = arg == "basic"
    config.train.update({"batch_size": 4, "total_steps": 10_000 if basic else 40_000})
    config.optimizer = ConfigDict(
        {
            "name": "sgd",
            "momentum": 0.9,
            "schedule": {"name": "constant", "base": 0.1 if basic else 1e-3},
            "rules": (
                {"pattern": r"/(bias|scale)$"},
                {"pattern": r".*", "weight_decay": 5e-4},
            ),
        }
    )
    config.evaluate.update({"every_steps": 1_000, "batch_size": 4, "batch_statistics": "recomputed"})
    return config
