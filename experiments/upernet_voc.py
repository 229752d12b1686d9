"""UPerNet (arXiv 1807.10221) on PASCAL VOC 2012 with SBD's annotations.

Command: python -m jaxseg.main --config=experiments/upernet_voc.py [--config.data.manual_dir=DIR]
The authors train on ADE20K: SGD 0.02 poly 0.9, weight decay 1e-4, batch 16, 20 epochs of 5,000 steps, short side 300 to
600; on val they have 40.44 mIoU for ResNet-50 there. On VOC there is no published figure, and none was measured here.
"""

from ml_collections import ConfigDict

from experiments.defaults import IMAGENET, defaults


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; it takes no argument."""
    if arg:
        raise ValueError(f"experiments/upernet_voc.py takes no argument, not {arg!r}")
    config = defaults()
    config.model = ConfigDict({"name": "upernet", "backbone": "resnet50", "fpn_channels": 512, **IMAGENET})
    config.data.update(
        {
            "name": "voc2012_segmentation",
            "train_split": "train_aug",
            "crop_size_px": (512, 512),
            "evaluate_size_px": (512, 512),
        }
    )
    config.train.update({"batch_size": 16, "total_steps": 30_000})
    config.optimizer.schedule.update({"base": 0.02, "power": 0.9})
    return config
