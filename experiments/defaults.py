"""The keys that every experiment has, with values that an experiment changes where its result needs it."""

from ml_collections import ConfigDict

IMAGENET = {"image_mean": (123.675, 116.28, 103.53), "image_std": (58.395, 57.12, 57.375)}
INCEPTION = {"image_mean": (127.5, 127.5, 127.5), "image_std": (127.5, 127.5, 127.5)}

# --mode=bench, on train.batch_size images of data.crop_size_px; the parts are "train", "inference" and "input".
BENCH = {
    "parts": ("train", "inference"),
    "steps": 10,  # turns that are timed
    "steps_a_turn": 1,  # begun one after the other and awaited together: on accelerators several, as in training
    "warmup_steps": 3,
    "input_batches": 20,
    "profile_steps": 0,
    "torch_compile": False,
}

DATA = {
    "name": "",
    "manual_dir": "",
    "data_dir": "",
    "train_split": "train",
    "evaluate_split": "val",
    "crop_size_px": (512, 512),
    "scale_range": (0.5, 2.0),
    "flip_probability": 0.5,
    "color_jitter": {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
    "evaluate_size_px": (),
    "workers": 2,
    "prefetch_batches": 2,
    "invalid_labels": "raise",
    "on_bad_example": "raise",
    "builder": {},
}


def defaults() -> ConfigDict:
    """A fresh config; units stand in the keys (`_steps`, `_px`)."""
    return ConfigDict(
        {
            "seed": 0,
            "objective": "supervised",
            # The arguments of jaxseg.weights.load.load_weights; path "" starts from random weights.
            "weights": {"path": "", "table": "", "scope": "", "skip": ""},
            "loss": {"cross_entropy": 1.0},
            "loss_aux_weight": 0.0,
            "data": dict(DATA),
            "train": {
                "batch_size": 16,
                "total_steps": 30_000,
                "log_every_steps": 50,
                "accumulation_steps": 1,
                # Memory: rows of the logits at full size that the loss holds at a time (64, say; 0: all), and whether
                # the backward pass computes the network's stages again instead of keeping what is inside them.
                "loss_block_rows": 0,
                "remat": False,
                "compute_dtype": "float32",
                "ema_decay": 0.0,
                "clip_norm": 0.0,
            },
            "optimizer": {
                "name": "sgd",
                "momentum": 0.9,
                "schedule": {"name": "poly", "base": 0.007, "power": 0.9, "warmup_steps": 0},
                "rules": (
                    {"pattern": r"/(bias|scale)$", "weight_decay": 0.0},
                    {"pattern": r".*", "weight_decay": 1e-4},
                ),
            },
            "evaluate": {
                "every_steps": 1_000,
                "batch_size": 8,
                # Names, or {name: options}: ("confusion", "calibration", {"trimap": {"widths_px": (3, 9)}}).
                "metrics": ("confusion",),
                "scales": (1.0,),
                "flip": False,
                "window_px": (),
                # "recomputed": --mode=evaluate replaces batch norm's statistics by those of the training set (SegNet).
                "batch_statistics": "running",
                "overlay_count": 4,
            },
            "checkpoint": {"every_steps": 1_000, "keep": 2},
            "bench": dict(BENCH),
            "mesh": {"data": -1, "fsdp": 1, "space": 1},
        }
    )
