"""Dilation8 (arXiv 1511.07122) on CamVid, 11 classes: VGG-16 front end with the basic context module.

Command: python -m jaxseg.main --config=experiments/dilation_camvid.py --config.data.manual_dir=DIR
         python -m jaxseg.main --config=experiments/dilation_camvid.py:front_end   (the authors' first stage)
The authors' joint stage: SGD, momentum 0.9, weight decay 5e-4, learning rate 1e-5 (biases twice), a tenth after each
100,000 steps; before it the front end by itself at 1e-4 in batches of 14, which the argument sets. Mirrored crops of
628 pixels, 256 without the border of 186; the network mirrors that border itself.
Expected: the paper has 65.3 mIoU on test for the joint network from ImageNet weights; not measured here (no VGG-16
weights come with the code). The authors' order of classes differs from SegNet's, which the data set here has.
"""

from ml_collections import ConfigDict

from experiments.defaults import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    """The joint network, or `front_end` without the context module."""
    if arg not in (None, "", "front_end"):
        raise ValueError(f"experiments/dilation_camvid.py takes the argument 'front_end' or none, not {arg!r}")
    front_end = arg == "front_end"
    config = defaults()
    config.model = ConfigDict(
        {
            "name": "dilation",
            "context": "none" if front_end else "basic",
            "image_mean": (105.4121, 108.7781, 110.7031),
            "image_std": (1.0, 1.0, 1.0),
        }
    )
    config.data.update(
        {
            "name": "camvid",
            "train_split": "train",
            "evaluate_split": "val",
            "crop_size_px": (256, 256),
            "scale_range": (1.0, 1.0),
            "evaluate_size_px": (360, 480),
        }
    )
    config.train.update({"batch_size": 14, "total_steps": 20_000})
    config.optimizer = ConfigDict(
        {
            "name": "sgd",
            "momentum": 0.9,
            # Shorter than the 100,000 steps after which the authors' rate falls.
            "schedule": {"name": "constant", "base": 1e-4 if front_end else 1e-5},
            "rules": (
                {"pattern": r"/bias$", "learning_rate_multiplier": 2.0},
                {"pattern": r".*", "weight_decay": 5e-4},
            ),
        }
    )
    config.evaluate.update({"batch_size": 4})
    return config
