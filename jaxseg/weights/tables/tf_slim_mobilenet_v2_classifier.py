"""TF-slim's MobileNetV2 with its ImageNet classifier, into `MobileNetV2Classifier`."""

from jaxseg.weights.rules import Source
from jaxseg.weights.tables.tf_slim_mobilenet_v2 import IMAGE, backbone, conv_norm

IGNORED: dict[str, str] = {}
EXPECTS = {"norm.epsilon": 1e-3, **IMAGE}

TABLE = (
    backbone("backbone/")
    | conv_norm("conv_last", "MobilenetV2/Conv_1")
    | {
        "params/classifier/kernel": Source("MobilenetV2/Logits/Conv2d_1c_1x1/weights"),
        "params/classifier/bias": Source("MobilenetV2/Logits/Conv2d_1c_1x1/biases"),
    }
)
