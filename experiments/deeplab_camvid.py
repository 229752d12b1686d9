"""DeepLabV3+ (arXiv 1802.02611) over MobileNetV2 on CamVid, SegNet's 11 classes, from ImageNet weights.

Command: python -m jaxseg.main --config=experiments/deeplab_camvid.py --config.data.manual_dir=../shared/data/camvid
Measured on two shared CPU cores: 66.9 mIoU, 92.9 pixel accuracy after 1,500 of the 1,800 steps, 57 minutes of training
(experiments/results). The crop is no multiple of 16 plus 1, so align_corners is off by up to 3 px, which probably costs
pole (2.6 IoU).
Weights: the TF-slim MobileNetV2 1.0 224 arrays as .npz; --config.weights.path=FILE where they lie elsewhere.
"""

from ml_collections import ConfigDict

from experiments.defaults import INCEPTION, defaults


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; it takes no argument."""
    if arg:
        raise ValueError(f"experiments/deeplab_camvid.py takes no argument, not {arg!r}")
    config = defaults()
    config.model = ConfigDict(
        {"name": "deeplab_v3plus", "backbone": "mobilenet_v2", "output_stride": 16, "separable": True, **INCEPTION}
    )
    config.weights.update(
        {
            "path": "../shared/data/weights/mobilenet_v2_1.0_224_imagenet.npz",
            "table": "tf_slim_mobilenet_v2",
            "scope": "backbone",
        }
    )
    config.data.update(
        {
            "name": "camvid",
            "train_split": "train",
            "evaluate_split": "val",
            "crop_size_px": (352, 352),
            "scale_range": (0.5, 2.0),
            "evaluate_size_px": (360, 480),
        }
    )
    config.data.color_jitter.update({"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.02})
    config.train.update({"batch_size": 8, "total_steps": 1_800, "log_every_steps": 20, "ema_decay": 0.99})
    config.optimizer = ConfigDict(
        {
            "name": "adamw",
            "schedule": {"name": "poly", "base": 1e-3, "power": 0.9, "warmup_steps": 50},
            "rules": (
                {"pattern": r"^backbone/.*(bias|scale)$", "learning_rate_multiplier": 0.3},
                {"pattern": r"^backbone/", "learning_rate_multiplier": 0.3, "weight_decay": 1e-2},
                {"pattern": r"/(bias|scale)$"},
                {"pattern": r".*", "weight_decay": 1e-2},
            ),
        }
    )
    config.evaluate.update({"every_steps": 300, "batch_size": 4})
    config.checkpoint.update({"every_steps": 300, "keep": 2})
    return config
