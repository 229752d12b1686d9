"""A data set of three classes and evaluation results whose numbers are known by hand."""

import math

import numpy as np

from jaxseg.core.types import DatasetInfo
from jaxseg.evaluate.split import EvaluationResult

INFO = DatasetInfo("tiny", ("ground", "red", "absent"), ((10, 20, 30), (200, 0, 0), (0, 0, 250)), 255)
CONFUSION = np.asarray([[3, 1, 0], [2, 4, 0], [0, 0, 0]], np.int64)
IOU = (0.5, 4 / 7)  # ground: 3 / (3 + 1 + 2); red: 4 / (4 + 2 + 1)


def sample(height=6, width=10, seed=0):
    """Image, label with a void corner, and a prediction that is wrong in one row."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    label = np.zeros((height, width), np.int32)
    label[:, width // 2 :] = 1
    prediction = label.copy()
    prediction[0] = 0
    label[0, 0] = INFO.void
    return image, label, prediction


def result(*, samples=0, scale=1.0):
    """What an evaluation returns; `scale` makes one evaluation differ from another."""
    metrics = {
        "iou": [IOU[0] * scale, IOU[1] * scale, math.nan],
        "miou_present": sum(IOU) / 2 * scale,
        "miou_all": sum(IOU) / 3 * scale,
        "pixel_accuracy": 0.7,
        "mean_accuracy": (3 / 4 + 4 / 6) / 2,
        "frequency_weighted_iou": (4 * IOU[0] + 6 * IOU[1]) / 10,
    }
    return EvaluationResult(metrics, CONFUSION, 5, [sample(seed=i) for i in range(samples)])
