"""GCN, the global convolutional network (arXiv 1703.02719), on PASCAL VOC 2012 with SBD's annotations.

Command: python -m jaxseg.main --config=experiments/gcn_voc.py [--config.data.manual_dir=DIR]
The paper's setting: ResNet-152 from ImageNet weights, kernels of 15, SGD with momentum 0.99, batch 1, weight decay
5e-4, frozen batch norm, images cropped or padded to 512. Expected: 74.7 mIoU on val with boundary refinement, before
training on COCO. Not measured here. The paper does not state the rate; this one is a guess.
"""

from ml_collections import ConfigDict

from experiments.defaults import IMAGENET, defaults


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; it takes no argument."""
    if arg:
        raise ValueError(f"experiments/gcn_voc.py takes no argument, not {arg!r}")
    config = defaults()
    config.model = ConfigDict(
        {"name": "gcn", "backbone": "resnet152", "kernel_size": 15, "freeze_norm": True, **IMAGENET}
    )
    config.data.update(
        {
            "name": "voc2012_segmentation",
            "train_split": "train_aug",
            "crop_size_px": (512, 512),
            "scale_range": (1.0, 1.0),
            "evaluate_size_px": (512, 512),
        }
    )
    config.train.update({"batch_size": 1, "total_steps": 150_000})
    config.optimizer = ConfigDict(
        {
            "name": "sgd",
            "momentum": 0.99,
            "schedule": {"name": "poly", "base": 1e-4, "power": 0.9},
            "rules": ({"pattern": r".*", "weight_decay": 5e-4},),
        }
    )
    return config
