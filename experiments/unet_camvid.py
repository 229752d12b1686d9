"""U-Net (arXiv 1505.04597) and its kin on CamVid, 11 classes, from random weights; the paper's cells are not at hand.

Command: python -m jaxseg.main --config=experiments/unet_camvid.py --config.data.manual_dir=../shared/data/camvid
         python -m jaxseg.main --config=experiments/unet_camvid.py:same        (zeros at the borders, batch norm)
         python -m jaxseg.main --config=experiments/unet_camvid.py:encoder     (over a ResNet-34)
         python -m jaxseg.main --config=experiments/unet_camvid.py:residual    (arXiv 1608.04117)
The paper's setting for the network as published: one large tile a step, SGD with momentum 0.99, dropout 0.5, elastic
deformation, and weights that stress the borders between cells. Here batch, momentum and dropout are the paper's, the
loss is plain cross-entropy, and rate and length are ours; the others train with batch 8 and Adam. The residual
network's authors have RMSprop 1e-3, rho 0.9, weight decay 1e-4, batch 1 and dropout 0.1, which it gets.
Expected: no paper has figures for CamVid. On the ISBI cell-tracking data the paper reports 92.0 IoU (PhC-U373) and
77.6 (DIC-HeLa). Nothing was measured here.
"""

from ml_collections import ConfigDict

from experiments.defaults import IMAGENET, defaults

MODELS = {
    None: {"name": "unet"},
    "same": {"name": "unet", "padding": "same", "batch_norm": True, "dropout_rate": 0.0},
    "encoder": {"name": "unet_encoder", "backbone": "resnet34"},
    "residual": {"name": "residual_fcn"},
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; the argument is `same`, `encoder`, `residual` or none."""
    if arg not in MODELS:
        raise ValueError(f"experiments/unet_camvid.py takes same, encoder, residual or no argument, not {arg!r}")
    config = defaults()
    config.model = ConfigDict(MODELS[arg] | IMAGENET)
    config.data.update({"name": "camvid", "crop_size_px": (352, 352), "evaluate_size_px": (360, 480)})
    config.train.update({"batch_size": 1 if arg in (None, "residual") else 8, "total_steps": 30_000})
    rules = ({"pattern": r"/(bias|scale)$"}, {"pattern": r".*", "weight_decay": 1e-4})
    if arg is None:
        optimizer = {"name": "sgd", "momentum": 0.99, "schedule": {"name": "poly", "base": 1e-3, "warmup_steps": 500}}
    elif arg == "residual":
        optimizer = {"name": "rmsprop", "rho": 0.9, "schedule": {"name": "constant", "base": 1e-3}}
    else:
        optimizer = {"name": "adamw", "schedule": {"name": "cosine", "base": 1e-3, "warmup_steps": 500}}
    config.optimizer = ConfigDict(optimizer | {"rules": rules})
    config.evaluate.batch_size = 4
    return config
