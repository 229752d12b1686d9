"""DeepLab v2 (arXiv 1606.00915) on PASCAL VOC 2012 with SBD's extra annotations: ResNet-101, ASPP-L, three scales.

Command: python -m jaxseg.main --config=experiments/deeplab_v2_voc.py --config.data.manual_dir=DIR
         python -m jaxseg.main --config=experiments/deeplab_v2_voc.py:vgg        (VGG-16 ASPP-L, one scale)
The authors' recipe: crops of 321 pixels, scales 0.5 to 1.5, mirrored, batch 10, SGD, momentum 0.9, weight decay 5e-4,
learning rate 2.5e-4 (classifiers ten times, their biases twenty times), poly 0.9 over 20,000 steps, frozen batch norm,
a loss on each scale and on their maximum.
Expected on val without the CRF: 76.35 mIoU from MS-COCO weights of the ResNet, 68.96 for VGG ASPP-L from ImageNet
weights; not measured here (neither weights nor data set come with the code).
"""

from ml_collections import ConfigDict

from experiments.defaults import defaults

RESNET = {"backbone": "resnet101", "scales": (1.0, 0.75, 0.5)}
VGG = {"backbone": "vgg16", "fc_channels": 1024}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `vgg` takes the smaller trunk."""
    if arg not in (None, "", "vgg"):
        raise ValueError(f"experiments/deeplab_v2_voc.py takes the argument 'vgg' or none, not {arg!r}")
    vgg = arg == "vgg"
    config = defaults()
    config.model = ConfigDict(
        {
            "name": "deeplab_v2",
            "aspp_rates": (6, 12, 18, 24),
            "image_mean": (122.675, 116.669, 104.008),
            "image_std": (1.0, 1.0, 1.0),
            **(VGG if vgg else RESNET),
        }
    )
    # The fused scores and each scale's weigh the same.
    config.loss_aux_weight = 0.0 if vgg else 1.0
    config.data.update(
        {
            "name": "voc2012_segmentation",
            "train_split": "train_aug",
            "evaluate_split": "val",
            "crop_size_px": (321, 321),
            "scale_range": (0.5, 1.5),
            "evaluate_size_px": (513, 513),
        }
    )
    config.train.update({"batch_size": 10, "total_steps": 20_000})
    # VGG's convolutions have biases, which learn twice as fast; the ResNet's batch norms keep their values.
    trunk = {"learning_rate_multiplier": 2.0} if vgg else {"freeze": True}
    config.optimizer.update(
        {
            "schedule": {"name": "poly", "base": 2.5e-4, "power": 0.9},
            "rules": (
                {"pattern": r"classifier\d/bias$", "learning_rate_multiplier": 20.0},
                {"pattern": r"classifier\d/", "learning_rate_multiplier": 10.0, "weight_decay": 5e-4},
                {"pattern": r"/(bias|scale)$", **trunk},
                {"pattern": r".*", "weight_decay": 5e-4},
            ),
        }
    )
    return config
