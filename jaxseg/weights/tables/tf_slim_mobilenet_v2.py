"""TF-slim's MobileNetV2 (variables `MobilenetV2/...`) into the backbone `mobilenet_v2`, without the classifier."""

import numpy as np

from jaxseg.weights.rules import Source

IGNORED = {
    "MobilenetV2/Conv_1/": "the classifier's last 1x1 convolution",
    "MobilenetV2/Logits/": "the ImageNet classifier",
}
IMAGE = {"image_mean": (127.5, 127.5, 127.5), "image_std": (127.5, 127.5, 127.5)}
EXPECTS = {"padding": "same", "norm.epsilon": 1e-3, **IMAGE}


def depthwise(array: np.ndarray) -> np.ndarray:
    """HWC1 -> HW1C, the kernel of a grouped convolution with as many groups as channels."""
    return np.swapaxes(array, 2, 3)


def conv_norm(name: str, source: str, *, is_depthwise: bool = False) -> dict[str, Source]:
    """The five variables of a convolution with batch norm, for the flat names below `<collection>/<name>`."""
    kernel = Source(f"{source}/depthwise_weights", depthwise) if is_depthwise else Source(f"{source}/weights")
    return {
        f"params/{name}/conv/kernel": kernel,
        f"params/{name}/norm/scale": Source(f"{source}/BatchNorm/gamma"),
        f"params/{name}/norm/bias": Source(f"{source}/BatchNorm/beta"),
        f"batch_stats/{name}/norm/mean": Source(f"{source}/BatchNorm/moving_mean"),
        f"batch_stats/{name}/norm/var": Source(f"{source}/BatchNorm/moving_variance"),
    }


def backbone(prefix: str = "") -> dict[str, Source]:
    """The table of the 17 blocks and the first convolution; `prefix` stands before each name, as in `backbone/`."""
    table = conv_norm(f"{prefix}conv", "MobilenetV2/Conv")
    for i in range(17):
        source = f"MobilenetV2/expanded_conv_{i}" if i else "MobilenetV2/expanded_conv"
        for part in ("expand", "depthwise", "project") if i else ("depthwise", "project"):
            table |= conv_norm(f"{prefix}block{i}/{part}", f"{source}/{part}", is_depthwise=part == "depthwise")
    return table


TABLE = backbone()
