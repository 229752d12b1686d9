"""A whole run in seconds: a narrow DeepLabV3+ on a few drawn scenes, with every augmentation and two worker processes."""

from ml_collections import ConfigDict

from experiments.deeplab_voc import get_config as voc


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; it takes no argument."""
    del arg
    config = voc("demo")
    config.model.backbone_options.width = 0.25
    config.model.update({"aspp_channels": 16, "decoder_channels": 16, "low_level_channels": 8})
    config.data.update({"crop_size_px": (48, 56), "workers": 2})
    config.data.color_jitter.update({"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.05})
    config.data.builder = ConfigDict(
        {"train_count": 24, "val_count": 6, "min_size_px": (48, 48), "max_size_px": (64, 72)}
    )
    config.train.update({"batch_size": 4, "total_steps": 30, "log_every_steps": 1})
    config.optimizer.schedule.warmup_steps = 5
    config.evaluate.update({"every_steps": 10, "batch_size": 4, "overlay_count": 1})
    config.checkpoint.update({"every_steps": 5, "keep": 2})
    return config
