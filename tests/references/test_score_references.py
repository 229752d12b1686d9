"""Scores, calibration and average precision against scikit-learn, torchmetrics and pycocotools, where installed."""

import contextlib
import io
import warnings

import numpy as np
import pytest

from jaxseg.metrics import average_precision, calibration, confusion
from jaxseg.metrics.regions import Regions
from tests.references.record import record_difference

CLASSES = 6


def example(shape=(4, 17, 19), seed=0):
    """Labels with void and a class that is never there, predictions, mask."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES - 1, shape)
    predictions = np.where(rng.random(shape) < 0.6, labels, rng.integers(0, CLASSES - 1, shape))
    where = rng.random(shape) < 0.9
    return np.where(where, labels, 255).astype(np.int32), predictions.astype(np.int32), where


def scores(labels, predictions, where):
    metric = confusion.build(num_classes=CLASSES)
    state = metric.state()
    state.update(metric.counts(labels, predictions, where=where))
    return state.to_arrays()["confusion"], state.compute()


def version(module):
    return f"{module.__name__.split('.')[0]} {getattr(module, '__version__', '')}".strip()


@pytest.mark.parametrize("seed", range(3))
def test_scikit_learn(seed):
    sklearn = pytest.importorskip("sklearn")
    from sklearn import metrics

    labels, predictions, where = example(seed=seed)
    y, p, all_ids = labels[where], predictions[where], np.arange(CLASSES)
    counts, result = scores(labels, predictions, where)
    np.testing.assert_array_equal(counts, metrics.confusion_matrix(y, p, labels=all_ids))
    some = np.arange(CLASSES - 1)
    macro = {"labels": all_ids, "average": "macro", "zero_division": 0}
    each = {"labels": some, "average": None, "zero_division": np.nan}
    pairs = [
        ("cohen_kappa", result["cohen_kappa"], metrics.cohen_kappa_score(y, p)),
        ("pixel_accuracy", result["pixel_accuracy"], metrics.accuracy_score(y, p)),
        ("mean_accuracy", result["mean_accuracy"], metrics.balanced_accuracy_score(y, p)),
    ]
    functions = {
        "f1": metrics.f1_score,
        "precision": metrics.precision_score,
        "recall": metrics.recall_score,
        "iou": metrics.jaccard_score,
    }
    for name, function in functions.items():
        mean = "miou" if name == "iou" else name
        options = each if name != "iou" else each | {"zero_division": 0}
        pairs.append((name, np.asarray(result[name])[some], function(y, p, **options)))
        pairs.append((f"{mean}_all", result[f"{mean}_all"], function(y, p, **macro)))
        present = function(y, p, **macro | {"labels": some})
        pairs.append((f"{mean}_present", result[f"{mean}_present"], present))
    for name, got, expected in pairs:
        difference = np.max(np.abs(np.asarray(got) - np.asarray(expected)))
        record_difference(name, version(sklearn), difference)
        assert difference < 1e-12, name


@pytest.mark.parametrize("seed", range(2))
def test_torchmetrics_scores(seed):
    torchmetrics = pytest.importorskip("torchmetrics")
    torch = pytest.importorskip("torch")
    from torchmetrics import classification

    labels, predictions, where = example(seed=seed)
    y, p = torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(predictions.astype(np.int64))
    counts, result = scores(labels, predictions, where)
    options = {"num_classes": CLASSES, "ignore_index": 255}
    pairs = {
        "confusion": (classification.MulticlassConfusionMatrix(**options), counts),
        "miou_present": (classification.MulticlassJaccardIndex(**options), result["miou_present"]),
        "cohen_kappa": (classification.MulticlassCohenKappa(**options), result["cohen_kappa"]),
        "f1_present": (classification.MulticlassF1Score(average="macro", **options), result["f1_present"]),
        "precision_present": (classification.MulticlassPrecision(**options), result["precision_present"]),
        "recall_present": (classification.MulticlassRecall(**options), result["recall_present"]),
    }
    for name, (theirs, ours) in pairs.items():
        theirs.update(p, y)
        difference = np.max(np.abs(theirs.compute().numpy() - np.asarray(ours)))
        record_difference(name, f"{version(torchmetrics)} {type(theirs).__name__}", difference)
        assert difference < 1e-6, name  # they compute in float32


@pytest.mark.parametrize("bins", [5, 15, 30])
def test_torchmetrics_calibration_error(bins):
    torchmetrics = pytest.importorskip("torchmetrics")
    torch = pytest.importorskip("torch")
    from torchmetrics.classification import MulticlassCalibrationError

    labels, predictions, where = example()
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1, (*labels.shape, CLASSES)) + 2 * np.eye(CLASSES)[predictions]
    probabilities = (np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)).astype(np.float32)
    metric = calibration.build(num_classes=CLASSES, bins=bins)
    state = metric.state()
    state.update(metric.counts(labels, probabilities, where=where))
    result = state.compute()
    keys = {"l1": "expected_calibration_error", "l2": "rms_calibration_error", "max": "maximum_calibration_error"}
    for norm, key in keys.items():
        theirs = MulticlassCalibrationError(num_classes=CLASSES, n_bins=bins, norm=norm, ignore_index=255)
        theirs.update(torch.from_numpy(np.moveaxis(probabilities, -1, 1)), torch.from_numpy(labels.astype(np.int64)))
        difference = abs(float(theirs.compute()) - result[key])
        record_difference(key, f"{version(torchmetrics)} MulticlassCalibrationError", difference)
        assert difference < 1e-6, norm


@pytest.mark.parametrize("seed", range(4))
def test_scikit_learn_average_precision(seed):
    sklearn = pytest.importorskip("sklearn")
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(seed)
    values, hit = rng.integers(0, 40, 200) / 40, rng.random(200) < 0.4
    ours = average_precision.average_precision(values, hit.astype(int), int(hit.sum()), interpolation="none")
    difference = abs(ours - average_precision_score(hit, values))
    record_difference("average_precision", f"{version(sklearn)} average_precision_score", difference)
    assert difference < 1e-12


def random_images(seed, count=6, shape=(24, 30), classes=3):
    """Rectangles as ground truth, moved ones as predictions with different scores, a crowd now and then."""
    rng, images, ranks = np.random.default_rng(seed), [], iter(np.random.default_rng(seed).permutation(1000) / 1000)

    def rectangles(boxes):
        masks = np.zeros((len(boxes), *shape), bool)
        for mask, (top, left, height, width) in zip(masks, boxes, strict=True):
            mask[max(0, top) : top + height, max(0, left) : left + width] = True
        return masks

    for _ in range(count):
        boxes = [(*rng.integers(0, 18, 2), *rng.integers(3, 9, 2)) for _ in range(rng.integers(1, 7))]
        ids, crowd = rng.integers(0, classes - 1, len(boxes)), rng.random(len(boxes)) < 0.15
        origins = [k for k in range(len(boxes)) for _ in range(rng.integers(0, 3))]
        moved = [tuple(np.asarray(boxes[k]) + rng.integers(-1, 2, 4)) for k in origins]
        wrong = rng.random(len(origins)) < 0.15
        predicted_ids = np.where(wrong, rng.integers(0, classes, len(origins)), ids[origins] if origins else 0)
        truth = Regions(ids, np.ones(len(ids)), masks=rectangles(boxes), crowd=crowd)
        scores_of = np.asarray([next(ranks) for _ in moved])
        images.append((Regions(predicted_ids, scores_of, masks=rectangles(moved)), truth))
    return images


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.filterwarnings("ignore")
def test_pycocotools(seed):
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools import mask
    from pycocotools.cocoeval import COCOeval

    images = random_images(seed)
    truths, found = [], []
    for image, (predicted, truth) in enumerate(images):
        for m, c, crowd in zip(truth.masks, truth.classes, truth.crowd, strict=True):
            code = {"image_id": image, "category_id": int(c), "segmentation": mask.encode(np.asfortranarray(m))}
            extra = {"id": len(truths) + 1, "area": float(m.sum()), "iscrowd": int(crowd), "bbox": [0, 0, 1, 1]}
            truths.append(code | extra)
        for m, c, s in zip(predicted.masks, predicted.classes, predicted.scores, strict=True):
            code = {"image_id": image, "category_id": int(c), "segmentation": mask.encode(np.asfortranarray(m))}
            found.append(code | {"score": float(s)})
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        data = coco.COCO()
        sizes = [{"id": i, "height": 24, "width": 30} for i in range(len(images))]
        data.dataset = {"images": sizes, "annotations": truths, "categories": [{"id": c} for c in range(3)], "info": {}}
        data.createIndex()
        evaluation = COCOeval(data, data.loadRes(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    rows = average_precision.match_images(images, num_classes=3)
    result = average_precision.precision_scores(rows)
    keys = ("mean_average_precision", "mean_average_precision_50", "mean_average_precision_75")
    difference = max(abs(result[key] - evaluation.stats[i]) for i, key in enumerate(keys))
    record_difference("average_precision", "pycocotools 2.0.11 COCOeval", difference)
    assert difference < 1e-12 and 0.05 < result["mean_average_precision"] < 0.95
