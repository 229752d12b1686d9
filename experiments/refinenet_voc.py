"""RefineNet (arXiv 1611.06612) on PASCAL VOC 2012 with SBD's annotations.

Command: python -m jaxseg.main --config=experiments/refinenet_voc.py [--config.data.manual_dir=DIR]
The authors' setting: ResNet-101 from ImageNet weights with frozen batch norm, SGD 5e-4, then 5e-5, a tenth of it on the
backbone, momentum 0.9, weight decay 5e-4, batch 1, crop 400, scales 0.7 to 1.3, flips; they step the rate by hand.
Expected: 80.5 mIoU on val at one scale (the public PyTorch weights, trained with COCO). Not measured here.
"""

from ml_collections import ConfigDict

from experiments.defaults import IMAGENET, defaults


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; it takes no argument."""
    if arg:
        raise ValueError(f"experiments/refinenet_voc.py takes no argument, not {arg!r}")
    config = defaults()
    config.model = ConfigDict({"name": "refinenet", "backbone": "resnet101", "crp_blocks": 4, **IMAGENET})
    config.data.update(
        {
            "name": "voc2012_segmentation",
            "train_split": "train_aug",
            "crop_size_px": (400, 400),
            "scale_range": (0.7, 1.3),
            "evaluate_size_px": (513, 513),
        }
    )
    config.train.update({"batch_size": 1, "total_steps": 300_000})
    config.optimizer = ConfigDict(
        {
            "name": "sgd",
            "momentum": 0.9,
            "schedule": {"name": "step", "base": 5e-4, "boundaries_steps": (200_000,), "factor": 0.1},
            "rules": (
                {"pattern": r"^backbone/", "weight_decay": 5e-4, "learning_rate_multiplier": 0.1},
                {"pattern": r".*", "weight_decay": 5e-4},
            ),
        }
    )
    return config
