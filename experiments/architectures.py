"""Every architecture at equal steps: what each learns in a few minutes on two cores.

Command: python -m jaxseg.main --config=experiments/architectures.py:upernet
         python -m jaxseg.main --config=experiments/architectures.py:upernet,camvid --config.data.manual_dir=DIR
         (any name of jaxseg.models; all of them: python -m tests.benchmarks.architectures RESULT.json)
On the embedded `shapes`, where most pixels are background, 300 steps from random weights leave the networks of output
stride 8 and 16 with next to nothing; CamVid's large classes show more.
The networks are narrow (0.1 to 2.6 million parameters) and start from random weights, so that this compares the code at
equal steps, not the papers: DeepLab v3+ (arXiv 1802.02611) over ImageNet weights is another matter. 300 steps of batch
4 at crop 129 (CamVid: 161), AdamW 1e-3, and no schedule that suits one more than another. Results: experiments/results.
"""

from ml_collections import ConfigDict

from experiments.defaults import INCEPTION, defaults

RESNET = {"backbone": "resnet18", "backbone_options": {"width": 16}}
MOBILE = {"backbone": "mobilenet_v2", "backbone_options": {"width": 0.5}}
DECODER = {"decoder_channels": 64, "low_level_channels": 24}
VGG = {"backbone_options": {"width": 16}, "fc_channels": 256}
STAGES = ((16, 16), (32, 32), (64, 64, 64), (128, 128, 128), (128, 128, 128))
MIRRORED = ((128, 128, 128), (128, 128, 64), (64, 64, 32), (32, 16), (16,))
NARROW = {
    "deeplab_v1": VGG,
    "deeplab_v2": {"backbone": "resnet50", "backbone_options": {"width": 16}, "freeze_norm": False},
    "deeplab_v3": MOBILE | {"aspp_channels": 64},
    "deeplab_v3plus": MOBILE | {"aspp_channels": 64, "separable": True} | DECODER,
    "dilation": VGG,
    "fcn": VGG,
    "fcn_resnet": RESNET,
    "gcn": RESNET | {"kernel_size": 7},
    "ksac": MOBILE | {"channels": 64} | DECODER,
    "lraspp": {"backbone_options": {"width": 0.5}, "channels": 64},
    "pspnet": RESNET | {"pyramid_channels": 32, "fusion_channels": 64},
    "refinenet": RESNET | {"features": (32, 32, 32, 64), "freeze_norm": False},
    "residual_fcn": {"width": 8, "depths": (2, 2, 2)},
    "scnet_recon": {"encoder": STAGES, "decoder": ((128,), (64,), (32,), (16,), (16,))},
    "segnet": {"encoder": STAGES, "decoder": MIRRORED},
    "segnet_basic": {"width": 32},
    "tiramisu": {"layers": (3, 3, 3, 3, 3, 3, 3), "growth_rate": 8, "first_channels": 24},
    "unet": {"width": 16, "padding": "same", "batch_norm": True, "dropout_rate": 0.0},
    "unet_encoder": RESNET | {"decoder_channels": (64, 32, 32, 16, 16)},
    "upernet": RESNET | {"pyramid_channels": 32, "fpn_channels": 64},
}
DATA = {
    "shapes": {
        "name": "shapes",
        "crop_size_px": (129, 129),
        "scale_range": (0.75, 1.5),
        "evaluate_size_px": (177, 225),
    },
    "camvid": {
        "name": "camvid",
        "crop_size_px": (161, 161),
        "scale_range": (0.75, 1.25),
        "evaluate_size_px": (361, 481),
    },
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; the argument is the model's name, `deeplab_v3plus` by default."""
    name, _, data = (arg or "deeplab_v3plus").partition(",")
    if name not in NARROW or data not in ("", *DATA):
        known = f"one of {', '.join(NARROW)}, and one of {', '.join(DATA)} after a comma"
        raise ValueError(f"experiments/architectures.py takes {known}, not {arg!r}")
    config = defaults()
    config.model = ConfigDict({"name": name, **NARROW[name], **INCEPTION})
    config.data.update(DATA[data or "shapes"])
    config.train.update({"batch_size": 4, "total_steps": 300, "log_every_steps": 25, "ema_decay": 0.97})
    config.optimizer = ConfigDict(
        {
            "name": "adamw",
            "schedule": {"name": "cosine", "base": 1e-3, "warmup_steps": 30},
            "rules": ({"pattern": r".*", "weight_decay": 1e-4},),
        }
    )
    config.evaluate.update({"every_steps": 300, "batch_size": 8})
    config.checkpoint.update({"every_steps": 300, "keep": 1})
    return config
