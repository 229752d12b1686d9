"""DeepLab-LargeFOV (arXiv 1412.7062) on PASCAL VOC 2012 with SBD's extra annotations (train_aug, 10,582 images).

Command: python -m jaxseg.main --config=experiments/deeplab_v1_voc.py --config.data.manual_dir=DIR
         python -m jaxseg.main --config=experiments/deeplab_v1_voc.py:msc        (MSc-LargeFOV)
The authors' recipe: crops of 321 pixels, mirrored, batch 20, SGD, momentum 0.9, weight decay 5e-4, learning rate 1e-3
(classifiers ten times, biases twice that), a tenth after each 2,000 of 6,000 steps. The loss is at full size, theirs on
labels of an eighth; for MSc they train the new layers alone, on top of a trained network.
Expected on val without the CRF, from ImageNet weights: 62.25 mIoU, MSc 64.21 (with it 67.64 and 68.70); not measured
here (neither the VGG-16 weights nor the data set come with the code).
"""

from ml_collections import ConfigDict

from experiments.defaults import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `msc` adds the branches on the image and the poolings."""
    if arg not in (None, "", "msc"):
        raise ValueError(f"experiments/deeplab_v1_voc.py takes the argument 'msc' or none, not {arg!r}")
    config = defaults()
    config.model = ConfigDict(
        {
            "name": "deeplab_v1",
            "variant": "large_fov",
            "multi_scale": arg == "msc",
            "image_mean": (122.675, 116.669, 104.008),
            "image_std": (1.0, 1.0, 1.0),
        }
    )
    config.data.update(
        {
            "name": "voc2012_segmentation",
            "train_split": "train_aug",
            "evaluate_split": "val",
            "crop_size_px": (321, 321),
            "scale_range": (1.0, 1.0),
            "evaluate_size_px": (513, 513),
        }
    )
    config.train.update({"batch_size": 20, "total_steps": 6_000})
    config.optimizer = ConfigDict(
        {
            "name": "sgd",
            "momentum": 0.9,
            "schedule": {"name": "step", "base": 1e-3, "boundaries_steps": (2_000, 4_000), "factor": 0.1},
            "rules": (
                {"pattern": r"classifier/bias$", "learning_rate_multiplier": 20.0},
                {"pattern": r"classifier/", "learning_rate_multiplier": 10.0, "weight_decay": 5e-4},
                {"pattern": r"/bias$", "learning_rate_multiplier": 2.0},
                {"pattern": r".*", "weight_decay": 5e-4},
            ),
        }
    )
    return config
