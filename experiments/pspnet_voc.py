"""PSPNet (arXiv 1612.01105) on PASCAL VOC 2012 with SBD's annotations.

Command: python -m jaxseg.main --config=experiments/pspnet_voc.py [--config.data.manual_dir=DIR]
         python -m jaxseg.main --config=experiments/pspnet_voc.py:101
The authors' setting: crop 473, batch 16, SGD 0.01 poly 0.9 with ten times the rate on the heads, weight decay 1e-4,
auxiliary loss 0.4, scales 0.5 to 2, flips (they also rotate and blur), 50 epochs of 661 steps.
Expected from ImageNet weights: their PyTorch code has 77.05 mIoU for 50 and 79.07 for 101 on val at one scale. Not
measured here.
"""

from ml_collections import ConfigDict

from experiments.defaults import IMAGENET, defaults


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; the argument is the ResNet's depth, 50 (default) or 101."""
    if arg not in (None, "50", "101"):
        raise ValueError(f"experiments/pspnet_voc.py takes 50 or 101, not {arg!r}")
    config = defaults()
    config.model = ConfigDict({"name": "pspnet", "backbone": f"resnet{arg or 50}", "aux_tap": "stage3", **IMAGENET})
    config.loss_aux_weight = 0.4
    config.data.update(
        {
            "name": "voc2012_segmentation",
            "train_split": "train_aug",
            "crop_size_px": (473, 473),
            "evaluate_size_px": (513, 513),
        }
    )
    config.train.update({"batch_size": 16, "total_steps": 50 * 661})
    config.optimizer = ConfigDict(
        {
            "name": "sgd",
            "momentum": 0.9,
            "schedule": {"name": "poly", "base": 0.01, "power": 0.9},
            "rules": (
                {"pattern": r"^backbone/", "weight_decay": 1e-4},
                {"pattern": r".*", "weight_decay": 1e-4, "learning_rate_multiplier": 10.0},
            ),
        }
    )
    config.evaluate.window_px = (473, 473)
    return config
