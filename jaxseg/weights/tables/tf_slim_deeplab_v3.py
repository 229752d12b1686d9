"""TF-slim's DeepLab v3 over MobileNetV2 into `deeplab_v3` with `aspp_rates=()`, `norm_epsilon=1e-3`."""

from jaxseg.weights.rules import Source
from jaxseg.weights.tables.tf_slim_mobilenet_v2 import IMAGE, backbone, conv_norm

IGNORED: dict[str, str] = {}
EXPECTS = {
    "alignment": "align_corners",
    "backbone.padding": "same",
    "backbone.norm.epsilon": 1e-3,
    "aspp.norm.epsilon": 1e-3,
    **IMAGE,
}

TABLE = (
    backbone("backbone/")
    | conv_norm("aspp/conv1x1", "aspp0")
    | conv_norm("aspp/image_pooling", "image_pooling")
    | conv_norm("aspp/project", "concat_projection")
    | {
        "params/classifier/kernel": Source("logits/semantic/weights"),
        "params/classifier/bias": Source("logits/semantic/biases"),
    }
)
