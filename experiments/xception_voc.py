"""DeepLab v3+ over Xception-65 (arXiv 1802.02611), KSAC (1908.09443) and LR-ASPP (1905.02244) on PASCAL VOC 2012.

Command: python -m jaxseg.main --config=experiments/xception_voc.py [--config.data.manual_dir=DIR]
         python -m jaxseg.main --config=experiments/xception_voc.py:ksac
         python -m jaxseg.main --config=experiments/xception_voc.py:lraspp   (over MobileNetV3-large)
The paper's setting: crop 513, batch 16, SGD 0.007 poly 0.9, 30,000 steps, output stride 16, scales 0.5 to 2.0, flips,
weight decay 4e-5, batch-norm decay 0.9997.
Expected from ImageNet and COCO weights, trained on train_aug: 82.20 mIoU on val (TensorFlow's model zoo); KSAC's paper
reports 85.96, torchvision's LR-ASPP 57.9 on COCO with VOC's labels. None of it was measured here: weights and data set
do not come with the code.
"""

from ml_collections import ConfigDict

from experiments.defaults import IMAGENET, INCEPTION, defaults

SLOW_NORM = {"norm_momentum": 0.9997}
MODELS = {
    None: {"name": "deeplab_v3plus", "backbone": "xception65", "separable": True} | SLOW_NORM | INCEPTION,
    "ksac": {"name": "ksac", "backbone": "xception65"} | SLOW_NORM | INCEPTION,
    "lraspp": {"name": "lraspp"} | IMAGENET,
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; the argument is `ksac`, `lraspp` or none."""
    if arg not in MODELS:
        raise ValueError(f"experiments/xception_voc.py takes ksac, lraspp or no argument, not {arg!r}")
    config = defaults()
    config.model = ConfigDict(MODELS[arg] | {"output_stride": 16})
    config.data.update(
        {
            "name": "voc2012_segmentation",
            "train_split": "train_aug",
            "crop_size_px": (513, 513),
            "evaluate_size_px": (513, 513),
        }
    )
    config.optimizer.rules = (
        {"pattern": r"/(bias|scale)$"},
        {"pattern": r".*", "weight_decay": 4e-5},
    )
    return config
