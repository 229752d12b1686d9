"""TF-slim's MobileNetV2 with its ImageNet classifier, into `MobileNetV2Classifier`."""

from jaxseg.weights.load import Source
from jaxseg.weights.tables.tf_slim_mobilenet_v2 import backbone, conv_norm

IGNORED: dict[str, str] = {}

TABLE = (
    backbone("backbone/")
    | conv_norm("conv_last", "MobilenetV2/Conv_1")
    | {
        "params/classifier/kernel": Source("MobilenetV2/Logits/Conv2d_1c_1x1/weights"),
        "params/classifier/bias": Source("MobilenetV2/Logits/Conv2d_1c_1x1/biases"),
    }
)
