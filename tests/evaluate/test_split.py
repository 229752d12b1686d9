"""Evaluation: every image once, on any number of devices, with counts that equal the NumPy twin's."""

import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.core.mesh import make_mesh
from jaxseg.core.types import DatasetInfo
from jaxseg.evaluate.split import Evaluator, evaluate_split, write_evaluation
from jaxseg.inference.predictor import Predictor
from jaxseg.metrics.calibration import calibration_numpy
from jaxseg.metrics.confusion import confusion_numpy
from jaxseg.metrics.metric import Metric, make_metrics

INFO = DatasetInfo("three", ("red", "green", "blue"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)), void=255)
MEAN = (100, 110, 120)
SIZE = (12, 10)
TRACES = []


class PerPixel(nn.Module):
    """The channel with the largest value wins; every trace is noted."""

    def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        TRACES.append(image.shape)
        return {"logits": image}


def predictor(**options):
    return Predictor(model=PerPixel(), mean=MEAN, std=(1.0, 1.0, 1.0), num_classes=3, **options)


def examples(count=10, seed=0):
    """(image, label) of different sizes, some pixels void, class 2 absent from the labels."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        h, w = rng.integers(3, SIZE[0] + 1), rng.integers(3, SIZE[1] + 1)
        label = np.where(rng.random((h, w)) < 0.2, 255, rng.integers(0, 2, (h, w))).astype(np.int32)
        result.append((rng.integers(0, 256, (h, w, 3)).astype(np.uint8), label))
    return result


def batches(data, batch_size, with_size=False):
    """Rows padded to SIZE and to whole batches, as the pipeline does."""
    for start in range(0, len(data), batch_size):
        image = np.empty((batch_size, *SIZE, 3), np.uint8)
        image[:] = MEAN
        batch = {
            "image": image,
            "label": np.full((batch_size, *SIZE), 255, np.int32),
            "index": np.full(batch_size, -1, np.int32),
            "size": np.zeros((batch_size, 2), np.int32),
        }
        for row, (picture, label) in enumerate(data[start : start + batch_size]):
            h, w = label.shape
            batch["image"][row, :h, :w], batch["label"][row, :h, :w] = picture, label
            batch["index"][row], batch["size"][row] = start + row, (h, w)
        if not with_size:
            del batch["size"]
        yield batch


def expected_confusion(data):
    total = np.zeros((3, 3), np.int64)
    for image, label in data:
        predicted = np.argmax(image.astype(np.float32) - np.asarray(MEAN, np.float32), axis=-1)
        total += confusion_numpy(label, predicted, num_classes=3, where=label < 3)
    return total


def mesh_of(devices):
    return make_mesh(devices=jax.devices()[:devices])


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [4, 8])
def test_every_image_once_on_any_number_of_devices(devices, batch_size):
    data = examples()
    result = evaluate_split(predictor(), {}, batches(data, batch_size), info=INFO, mesh=mesh_of(devices))
    np.testing.assert_array_equal(result.confusion, expected_confusion(data))
    assert result.confusion.dtype == np.int64 and result.images == 10
    assert result.pixels == sum(np.count_nonzero(label < 3) for _, label in data)
    assert result.metrics["pixel_accuracy"] == np.trace(result.confusion) / result.pixels


def test_image_rows_over_space():
    data = examples()
    mesh = make_mesh({"data": 2, "space": 2})
    result = evaluate_split(predictor(), {}, batches(data, 4, with_size=True), info=INFO, mesh=mesh, sample_count=10)
    np.testing.assert_array_equal(result.confusion, expected_confusion(data))
    check_samples(result.samples, data)


def test_padding_rows_count_nothing_even_with_labels():
    data = examples(3)
    (batch,) = batches(data, 4)
    batch["label"][3] = 1
    result = evaluate_split(predictor(), {}, [batch], info=INFO, mesh=mesh_of(4))
    np.testing.assert_array_equal(result.confusion, expected_confusion(data))
    assert result.images == 3


def test_several_scales_and_mirroring_on_four_devices():
    data = examples(4)
    options = {"scales": (0.5, 1.0), "flip": True}
    one = evaluate_split(predictor(**options), {}, batches(data, 4), info=INFO, mesh=mesh_of(1))
    four = evaluate_split(predictor(**options), {}, batches(data, 4), info=INFO, mesh=mesh_of(4))
    np.testing.assert_array_equal(one.confusion, four.confusion)


def test_compiled_once():
    evaluator = Evaluator(predictor(), INFO, mesh_of(4))
    TRACES.clear()
    first = evaluator.evaluate({}, batches(examples(), 4))
    second = evaluator.evaluate({}, batches(examples(seed=1), 4))
    assert len(TRACES) == 1
    assert not np.array_equal(first.confusion, second.confusion)


def check_samples(samples, data):
    assert len(samples) == len(data)
    for (image, label, prediction), (own_image, own_label) in zip(samples, data, strict=True):
        np.testing.assert_array_equal(image, own_image)
        np.testing.assert_array_equal(label, own_label)
        expected = np.argmax(own_image.astype(np.float32) - np.asarray(MEAN, np.float32), axis=-1)
        np.testing.assert_array_equal(prediction, expected)
        assert prediction.dtype == np.int32 and label.dtype == np.int32 and image.dtype == np.uint8


@pytest.mark.parametrize("count", [0, 3, 6, 10, 99])
def test_samples_at_native_size(count):
    data = examples()
    stream = batches(data, 4, with_size=True)
    result = evaluate_split(predictor(), {}, stream, info=INFO, mesh=mesh_of(4), sample_count=count)
    check_samples(result.samples, data[:count])


def test_samples_without_sizes_keep_their_padding():
    data = examples()
    result = evaluate_split(predictor(), {}, batches(data, 4), info=INFO, mesh=mesh_of(2), sample_count=2)
    assert [label.shape for _, label, _ in result.samples] == [SIZE, SIZE]
    h, w = data[0][1].shape
    np.testing.assert_array_equal(result.samples[0][1][:h, :w], data[0][1])


def test_more_classes_than_a_byte_holds():
    info = DatasetInfo("many", tuple(map(str, range(300))), ((0, 0, 0),) * 300, void=-1)

    class Last(nn.Module):
        def __call__(self, image, *, train):
            return {"logits": jnp.broadcast_to(jnp.arange(300, dtype=jnp.float32), (*image.shape[:-1], 300))}

    label = np.full((1, 3, 3), 299, np.int32)
    batch = {"image": np.zeros((1, 3, 3, 3), np.uint8), "label": label, "index": np.zeros(1, np.int32)}
    many = Predictor(model=Last(), mean=MEAN, std=(1.0,) * 3, num_classes=300)
    result = evaluate_split(many, {}, [batch], info=info, mesh=mesh_of(1), sample_count=1)
    assert result.confusion[299, 299] == 9
    np.testing.assert_array_equal(result.samples[0][2], label[0])


def test_progress_counts_images():
    seen = []
    evaluate_split(predictor(), {}, batches(examples(), 4), info=INFO, mesh=mesh_of(1), progress=seen.append)
    assert seen == [4, 8, 10]


def test_evaluation_json(tmp_path: pathlib.Path):
    data = examples()
    result = evaluate_split(predictor(), {}, batches(data, 4), info=INFO, mesh=mesh_of(1))
    path = tmp_path / "new" / "evaluation.json"
    write_evaluation(path, result, INFO, {"split": "val", "step": 7, "images": "overridden"})
    content = json.loads(path.read_text())
    assert (content["split"], content["step"], content["images"], content["dataset"]) == ("val", 7, 10, "three")
    assert content["pixels"] == result.pixels and content["confusion"] == result.confusion.tolist()
    assert content["iou"] == dict(zip(INFO.class_names, result.metrics["iou"], strict=True))
    assert content["recall"] == {"red": result.metrics["recall"][0], "green": result.metrics["recall"][1], "blue": None}
    assert content["metrics"] == {name: value for name, value in result.metrics.items() if isinstance(value, float)}
    assert {"miou_present", "f1_all", "cohen_kappa"} <= content["metrics"].keys()
    assert [p.name for p in path.parent.iterdir()] == ["evaluation.json"]


def test_absent_classes_are_null_in_json():
    data = [(np.zeros((3, 3, 3), np.uint8), np.full((3, 3), 255, np.int32))]
    result = evaluate_split(predictor(), {}, batches(data, 1), info=INFO, mesh=mesh_of(1))
    content = json.loads(json.dumps(result.to_json(INFO), allow_nan=False))
    assert content["iou"] == {"red": None, "green": None, "blue": None}
    assert content["metrics"]["miou_present"] is None and content["metrics"]["miou_all"] == 0


def test_split_without_images():
    with pytest.raises(JaxsegError, match="no image"):
        evaluate_split(predictor(), {}, [], info=INFO, mesh=mesh_of(1))


def test_predictor_of_other_classes():
    other = Predictor(model=PerPixel(), mean=MEAN, std=(1.0,) * 3, num_classes=2)
    with pytest.raises(ValueError, match="2 classes, three has 3"):
        Evaluator(other, INFO, mesh_of(1))


def rows_counted(labels, outputs, *, where, size=None):
    """Right pixels, pixels and height of each image: what a metric that keeps rows would count."""
    right = jnp.sum(where & (labels == outputs), axis=(-2, -1), dtype=jnp.int32)
    pixels = jnp.sum(where, axis=(-2, -1), dtype=jnp.int32)
    return {"right": right, "pixels": pixels, "height": size[:, 0]}


def image_scores(rows):
    """Means over images with a pixel."""
    some = rows["pixels"] > 0
    share = rows["right"][some] / rows["pixels"][some]
    return {"image_accuracy": float(share.mean()), "tallest": float(rows["height"][some].max())}


@pytest.mark.parametrize("sizes", [{"data": 1}, {"data": 2}, {"data": 4}, {"data": 1, "fsdp": 2}])
def test_further_metrics_see_every_image_once(sizes):
    data = examples()
    metrics = {
        "images": Metric(rows_counted, image_scores, keep="rows"),
        **make_metrics(("calibration",), num_classes=3),
    }
    mesh = make_mesh(sizes, devices=jax.devices()[: int(np.prod(list(sizes.values())))])
    stream = batches(data, 4, with_size=True)
    result = evaluate_split(predictor(), {}, stream, info=INFO, mesh=mesh, metrics=metrics)
    np.testing.assert_array_equal(result.confusion, expected_confusion(data))
    logits = [image.astype(np.float32) - np.asarray(MEAN, np.float32) for image, _ in data]
    shares = [np.mean((x.argmax(axis=-1) == y)[y < 3]) for x, (_, y) in zip(logits, data, strict=True)]
    assert result.metrics["image_accuracy"] == pytest.approx(np.mean(shares), rel=1e-12)
    assert result.metrics["tallest"] == max(label.shape[0] for _, label in data)
    probabilities = np.concatenate([np.asarray(jax.nn.softmax(x)).reshape(-1, 3) for x in logits])
    labels = np.concatenate([label.ravel() for _, label in data])
    expected = calibration_numpy(labels, probabilities)
    for name in ("expected_calibration_error", "maximum_calibration_error"):
        assert result.metrics[name] == pytest.approx(expected[name], abs=1e-6)


def test_evaluation_json_and_record_of_further_metrics():
    stream = batches(examples(4), 4, with_size=True)
    metrics = make_metrics(("calibration", {"confusion": {}}), num_classes=3)
    result = evaluate_split(predictor(), {}, stream, info=INFO, mesh=mesh_of(2), metrics=metrics)
    content = json.loads(json.dumps(result.to_json(INFO), allow_nan=False))
    assert content["metrics"]["expected_calibration_error"] == result.metrics["expected_calibration_error"]
    assert content["reliability"]["pixels"] == result.metrics["reliability"]["pixels"]
    assert None in content["reliability"]["accuracy"]


def test_two_metrics_with_the_same_key():
    metrics = {"again": make_metrics("confusion", num_classes=3)["confusion"]}
    with pytest.raises(JaxsegError, match="'again' gives .*miou_present"):
        evaluate_split(predictor(), {}, batches(examples(4), 4), info=INFO, mesh=mesh_of(1), metrics=metrics)


def test_probabilities_only_where_a_metric_needs_them(monkeypatch):
    seen = []
    monkeypatch.setattr(Predictor, "labels_and_probabilities", lambda *arguments: seen.append(1))
    evaluate_split(predictor(), {}, batches(examples(4), 4), info=INFO, mesh=mesh_of(1))
    assert not seen
