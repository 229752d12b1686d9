"""FCN (arXiv 1411.4038, 1605.06211) on PASCAL VOC 2012 with SBD's annotations.

Command: python -m jaxseg.main --config=experiments/fcn_voc.py:32s --config.weights.path=FILE
         python -m jaxseg.main --config=experiments/fcn_voc.py:16s
         python -m jaxseg.main --config=experiments/fcn_voc.py:8s
         python -m jaxseg.main --config=experiments/fcn_voc.py:8s_at_once
         python -m jaxseg.main --config=experiments/fcn_voc.py:alexnet
         python -m jaxseg.main --config=experiments/fcn_voc.py:resnet
The authors' setting: one whole image a step, no augmentation, the cross-entropy summed over its pixels (hence rates of
1e-10 and less), momentum 0.99, weight decay 5e-4, twice the rate and no decay for biases; 32s from ImageNet weights,
16s from 32s, 8s from 16s, 100,000 steps each, at once 300,000. AlexNet: mean over pixels, rate 1e-4, 20 images a step.
Without an argument it is 8s. Here images are padded to 500 x 500 with void. `resnet` is torchvision's recipe.
Expected: 63.6 (32s), 65.0 (16s), 65.5 (8s), 65.4 (at once), 48.0 (AlexNet) mIoU on the authors' 736 images of VOC 2011
val that SBD's train set does not have, from training on SBD's 8,498; not measured here. These splits differ.
"""

from ml_collections import ConfigDict

from experiments.defaults import IMAGENET, defaults

# Caffe's mean in RGB order; pixels keep their scale.
CAFFE = {"image_mean": (122.67892, 116.66877, 104.00699), "image_std": (1.0, 1.0, 1.0)}
# Learning rate and steps of each stage.
STAGES = {"32s": (1e-10, 100_000), "16s": (1e-12, 100_000), "8s": (1e-14, 100_000), "8s_at_once": (1e-10, 300_000)}
BIASES = {"pattern": r"/bias$", "learning_rate_multiplier": 2.0}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; the argument is the variant, "alexnet" or "resnet"."""
    arg = arg or "8s"
    if arg not in (*STAGES, "alexnet", "resnet"):
        raise ValueError(f"experiments/fcn_voc.py takes {', '.join(STAGES)}, alexnet or resnet, not {arg!r}")
    config = defaults()
    config.data.update({"name": "voc2012_segmentation", "train_split": "train_aug"})
    if arg == "resnet":
        return resnet(config)
    config.data.update({"crop_size_px": (500, 500), "evaluate_size_px": (500, 500)})
    config.data.update({"scale_range": (1.0, 1.0), "flip_probability": 0.0})
    rules = (BIASES, {"pattern": r".*", "weight_decay": 5e-4})
    if arg == "alexnet":
        config.model = ConfigDict({"name": "fcn", "variant": "32s", "backbone": "alexnet", **CAFFE})
        config.train.update({"batch_size": 20, "accumulation_steps": 20, "total_steps": 100_000})
        schedule, momentum = {"name": "constant", "base": 1e-4}, 0.9
    else:
        rate, steps = STAGES[arg]
        config.model = ConfigDict({"name": "fcn", "variant": arg, **CAFFE})
        config.loss = ConfigDict({"cross_entropy": {"weight": 1.0, "normalizer": "images"}})
        config.train.update({"batch_size": 1, "total_steps": steps})
        schedule, momentum = {"name": "constant", "base": rate}, 0.99
    config.optimizer = ConfigDict({"name": "sgd", "momentum": momentum, "schedule": schedule, "rules": rules})
    config.evaluate.update({"every_steps": 4_000, "batch_size": 1})
    config.checkpoint.every_steps = 4_000
    return config


def resnet(config: ConfigDict) -> ConfigDict:
    """torchvision's reference script: crop 480 of sides resized to 260 .. 1040, batch 32, 0.02 poly 0.9, 30 epochs."""
    config.model = ConfigDict({"name": "fcn_resnet", "backbone": "resnet50", "aux_tap": "stage3", **IMAGENET})
    config.loss_aux_weight = 0.5
    config.data.update({"crop_size_px": (480, 480), "evaluate_size_px": (513, 513)})
    config.train.update({"batch_size": 32, "total_steps": 30 * 331})
    config.optimizer.schedule.base = 0.02
    config.optimizer.rules = (
        {"pattern": r"^aux/", "weight_decay": 1e-4, "learning_rate_multiplier": 10.0},
        {"pattern": r".*", "weight_decay": 1e-4},
    )
    return config
