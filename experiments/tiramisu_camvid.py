"""FC-DenseNet (arXiv 1611.09326) on CamVid, SegNet's 11 classes, from random weights: the paper's first stage.

Command: python -m jaxseg.main --config=experiments/tiramisu_camvid.py:56 --config.data.manual_dir=../shared/data/camvid
         python -m jaxseg.main --config=experiments/tiramisu_camvid.py:67
         python -m jaxseg.main --config=experiments/tiramisu_camvid.py:103
The paper's setting: 367 images, batch 3, crop 224 with horizontal flips, RMSprop 1e-3 times 0.995 an epoch (123 steps),
weight decay 1e-4, dropout 0.2, up to 750 epochs; then fine-tuned on whole images with 1e-4 and batch 1:
  ... --config.data.crop_size_px="(360,480)" --config.train.batch_size=1 --config.optimizer.schedule.base=1e-4
Expected on the test split (which is not in this data set's archive): 58.9 mIoU for 56, 65.8 for 67, 66.9 for 103; the
authors evaluate with the batch's statistics (`config.model.batch_norm_at_test="batch"`). Not measured here.
"""

from ml_collections import ConfigDict

from experiments.defaults import defaults

UNIT = {"image_mean": (0.0, 0.0, 0.0), "image_std": (255.0, 255.0, 255.0)}
STEPS_AN_EPOCH = 123


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; the argument is the depth, 56, 67 or 103 (default)."""
    if arg not in (None, "56", "67", "103"):
        raise ValueError(f"experiments/tiramisu_camvid.py takes 56, 67 or 103, not {arg!r}")
    config = defaults()
    config.model = ConfigDict(
        {"name": "tiramisu", "depth": int(arg or 103), "batch_norm_at_test": "running", "norm_momentum": 0.9, **UNIT}
    )
    config.data.update(
        {
            "name": "camvid",
            "crop_size_px": (224, 224),
            "scale_range": (1.0, 1.0),
            "evaluate_size_px": (360, 480),
        }
    )
    config.train.update({"batch_size": 3, "total_steps": 750 * STEPS_AN_EPOCH})
    config.optimizer = ConfigDict(
        {
            "name": "rmsprop",
            "rho": 0.9,
            "schedule": {"name": "exponential", "base": 1e-3, "factor": 0.995, "every_steps": STEPS_AN_EPOCH},
            "rules": (
                {"pattern": r"norm/(bias|scale)$"},
                {"pattern": r".*", "weight_decay": 1e-4},
            ),
        }
    )
    config.evaluate.update({"every_steps": 10 * STEPS_AN_EPOCH, "batch_size": 4})
    config.checkpoint.update({"every_steps": 10 * STEPS_AN_EPOCH})
    return config
