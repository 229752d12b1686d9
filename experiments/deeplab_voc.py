"""DeepLabV3+ (arXiv 1802.02611) on PASCAL VOC 2012 with SBD's extra annotations (train_aug, 10,582 images).

Command: python -m jaxseg.main --config=experiments/deeplab_voc.py [--config.data.manual_dir=DIR]
         python -m jaxseg.main --config=experiments/deeplab_voc.py:demo     (drawn scenes, minutes on a laptop)
         python -m jaxseg.tools.convert deeplabv3_mnv2_os16_voc.npz --table=tf_slim_deeplab_v3 --output=DIR
           --config=experiments/deeplab_voc.py:tf_slim    (then --mode=evaluate or --mode=predict with --workdir=DIR)
The paper's setting: crop 513, batch 16, SGD 0.007 poly 0.9, 30,000 steps, output stride 16, scales 0.5 to 2.0, flips.
Expected for ResNet-101 from ImageNet weights at output stride 16: the paper's table 3 has 78.85 mIoU on val; not
measured here (the weights and the data set do not come with the code).
"""

from ml_collections import ConfigDict

from experiments.defaults import IMAGENET, INCEPTION, defaults


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `demo` trains a small network on the embedded `shapes` data set, `tf_slim` is for conversion."""
    if arg == "demo":
        return demo()
    if arg not in (None, "tf_slim"):
        raise ValueError(f"experiments/deeplab_voc.py takes the argument 'demo', 'tf_slim' or none, not {arg!r}")
    config = defaults()
    config.model = ConfigDict({"name": "deeplab_v3plus", "backbone": "resnet101", "output_stride": 16, **IMAGENET})
    config.data.update(
        {
            "name": "voc2012_segmentation",
            "train_split": "train_aug",
            "evaluate_split": "val",
            "crop_size_px": (513, 513),
            "evaluate_size_px": (513, 513),
        }
    )
    if arg == "tf_slim":
        # The published one of 2.1 million parameters: image pooling and a 1x1 convolution, no atrous branches.
        options = {"backbone": "mobilenet_v2", "output_stride": 16, "aspp_rates": (), "norm_epsilon": 1e-3}
        config.model = ConfigDict({"name": "deeplab_v3", **options, **INCEPTION})
        config.evaluate.batch_size = 1
    return config


def demo() -> ConfigDict:
    """Twenty drawn classes, written as a VOC devkit tree: the code that VOC runs, in minutes on two cores."""
    config = defaults()
    config.model = ConfigDict(
        {
            "name": "deeplab_v3plus",
            "backbone": "mobilenet_v2",
            "backbone_options": {"width": 0.5},
            "output_stride": 16,
            "separable": True,
            "aspp_channels": 64,
            "decoder_channels": 64,
            "low_level_channels": 24,
            **INCEPTION,
        }
    )
    # 16 k + 1 pixels: only there do the corners of all strides' maps lie on corner pixels, as align_corners assumes.
    config.data.update({"name": "shapes", "crop_size_px": (129, 129), "scale_range": (0.75, 1.5)})
    config.data.evaluate_size_px = (177, 225)
    config.train.update({"batch_size": 16, "total_steps": 1_000, "log_every_steps": 10, "ema_decay": 0.99})
    config.optimizer = ConfigDict(
        {
            "name": "adamw",
            "schedule": {"name": "cosine", "base": 3e-3, "warmup_steps": 30},
            "rules": ({"pattern": r"/(bias|scale)$"}, {"pattern": r".*", "weight_decay": 1e-2}),
        }
    )
    config.evaluate.update({"every_steps": 250, "batch_size": 8})
    config.checkpoint.update({"every_steps": 250, "keep": 2})
    return config
