"""The backbone alone out of TF-slim's DeepLab v3 over MobileNetV2."""

from jaxseg.weights.tables.tf_slim_mobilenet_v2 import EXPECTS, backbone

IGNORED = {
    "aspp0/": "DeepLab's head",
    "image_pooling/": "DeepLab's head",
    "concat_projection/": "DeepLab's head",
    "logits/": "the VOC classifier",
}

TABLE = backbone()
__all__ = ["EXPECTS", "IGNORED", "TABLE"]
