"""Evaluation of one split: exact counts at the native size of the labels, on any number of devices and processes."""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxseg.core.errors import JaxsegError
from jaxseg.core.files import write_text
from jaxseg.core.masks import valid_mask
from jaxseg.core.mesh import batch_sharding, put_batch, replicated
from jaxseg.core.types import Batch, DatasetInfo
from jaxseg.inference.predictor import Predictor
from jaxseg.metrics import confusion
from jaxseg.metrics.metric import Counts, Metric, Scores, State

FIELDS = ("image", "label", "index", "size")
Sample = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found.

    Attributes:
      metrics: what `jaxseg.metrics.confusion.scores` returns, and the scores of further metrics: numbers
        (`miou_present`), lists with a value per class (`iou`), tables (name -> list).
      confusion: int64 `[C, C]`, rows are the ground truth.
      images: number of images, of all processes.
      samples: (image uint8 `[h, w, 3]`, label int32 `[h, w]`, prediction int32 `[h, w]`) of this
        process's first images.
    """

    metrics: dict[str, Any]
    confusion: np.ndarray
    images: int
    samples: list[Sample] = dataclasses.field(default_factory=list)

    @property
    def pixels(self) -> int:
        """Number of valid pixels."""
        return int(self.confusion.sum())

    def to_json(self, info: DatasetInfo) -> dict[str, Any]:
        """What evaluation.json holds, as plain Python values; NaN becomes None.

        Args:
          info: names the classes.

        Returns:
          `dataset`, `images`, `pixels`, the scalar metrics under `metrics`, the others under their own names
          (`iou`: class name -> value), `classes`, and `confusion` (rows are the ground truth).
        """
        content = scores_by_class(self.metrics, info)
        scalars = {name: value for name, value in content.items() if not isinstance(value, dict)}
        return {
            "dataset": info.name,
            "images": self.images,
            "pixels": self.pixels,
            "metrics": scalars,
            **{name: value for name, value in content.items() if name not in scalars},
            "classes": list(info.class_names),
            "confusion": self.confusion.tolist(),
        }


def scores_by_class(metrics: Scores, info: DatasetInfo) -> dict[str, Any]:
    """Scores as plain values that JSON can hold.

    Args:
      metrics: numbers, lists with a value per class, tables (name -> list).
      info: names the classes.

    Returns:
      The same keys: numbers as they are, lists as mappings class name -> number, tables as they are; None for NaN.
    """
    plain: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            plain[name] = {column: [_finite(x) for x in values] for column, values in value.items()}
        elif np.ndim(value):
            plain[name] = dict(zip(info.class_names, map(_finite, value), strict=True))
        else:
            plain[name] = _finite(value)
    return plain


class Evaluator:
    """Evaluates one predictor on one mesh; compiled at the first batch and reused by every later evaluation."""

    def __init__(
        self, predictor: Predictor, info: DatasetInfo, mesh: Mesh, metrics: Mapping[str, Metric] | None = None
    ) -> None:
        """Args: predictor: gives the labels; info: gives classes and void; mesh: where batches are put; metrics: by
        name, beside the confusion matrix, which is always counted."""
        if predictor.num_classes != info.num_classes:
            raise ValueError(f"the predictor has {predictor.num_classes} classes, {info.name} has {info.num_classes}")
        self._predictor, self._info, self._mesh = predictor, info, mesh
        self._metrics = {"confusion": confusion.build(num_classes=info.num_classes), **(metrics or {})}
        shared = replicated(mesh)
        # Counts are small but for metrics that say so: every process sees those of all images and none has to merge.
        self._count = jax.jit(self._count_batch, out_shardings=(shared, shared, batch_sharding(mesh, 3)))

    def _count_batch(self, variables: Any, batch: Batch) -> tuple[dict[str, Counts], jax.Array, jax.Array]:
        real = batch["index"] >= 0
        rows = {name: value for name, value in batch.items() if name != "index"}
        rows["where"] = valid_mask(batch["label"], num_classes=self._info.num_classes) & real[:, None, None]
        counts, predictions = self._spread(variables, rows)
        return counts, jnp.sum(real, dtype=jnp.int32), predictions

    def _count_rows(self, variables: Any, rows: Batch) -> tuple[dict[str, Counts], jax.Array]:
        """Each metric's counts, an entry an image, and the labels; probabilities only where a metric needs them."""
        outputs = {}
        if any(metric.needs == "probabilities" for metric in self._metrics.values()):
            found = self._predictor.labels_and_probabilities(variables, rows["image"])
            outputs["labels"], outputs["probabilities"] = found
        else:
            outputs["labels"] = self._predictor.labels(variables, rows["image"])
        counts = {
            name: metric.counts(rows["label"], outputs[metric.needs], where=rows["where"], size=rows.get("size"))
            for name, metric in self._metrics.items()
        }
        narrow = jnp.uint8 if self._info.num_classes <= 256 else jnp.int32
        return counts, outputs["labels"].astype(narrow)

    def _spread(self, variables: Any, rows: Batch) -> tuple[dict[str, Counts], jax.Array]:
        """`_count_rows` of the batch; on CPUs one image after another on each device.

        A batch's size decides how a CPU's products are blocked, and so the last bits of the logits: about one pixel in
        ten million would change its class with the number of devices. One by one, an image gives the same labels
        whatever it is batched with, and its activations stay in the cache. Accelerators need the whole batch.
        """
        platform = self._mesh.devices.flat[0].platform
        if platform != "cpu" or self._mesh.shape["fsdp"] > 1 or self._mesh.shape["space"] > 1:
            return self._count_rows(variables, rows)

        def one_by_one(variables: Any, rows: Batch) -> tuple[dict[str, Counts], jax.Array]:
            def one(row: Batch) -> tuple[dict[str, Counts], jax.Array]:
                found = self._count_rows(variables, {name: value[None] for name, value in row.items()})
                return jax.tree.map(lambda x: x[0], found)

            return jax.lax.map(one, rows)

        by_row = PartitionSpec("data")
        spread = jax.shard_map(
            one_by_one, mesh=self._mesh, in_specs=(PartitionSpec(), by_row), out_specs=by_row, check_vma=False
        )
        return spread(variables, rows)

    def evaluate(
        self,
        variables: Any,
        batches: Iterable[Batch],
        *,
        sample_count: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> EvaluationResult:
        """Counts every image once; rows whose index is negative pad the batch and count nothing.

        Args:
          variables: what `predictor.model.apply` takes, on the host or on the mesh.
          batches: this process's rows; every process gives the same number of batches, all of one shape.
          sample_count: how many images to keep with label and prediction.
          progress: called with the number of images counted so far.

        Raises:
          JaxsegError: there is no image.
        """
        states, images = {name: metric.state() for name, metric in self._metrics.items()}, 0
        samples: list[Sample] = []
        for batch, (counts, real, predictions) in _one_behind(self._dispatched(variables, batches)):
            for name, state in states.items():
                state.update(counts[name])
            images += int(real)
            if len(samples) < sample_count:
                samples += _samples(batch, _local_rows(predictions))[: sample_count - len(samples)]
            if progress:
                progress(images)
        if not images:
            raise JaxsegError(
                f"{self._info.name}: the split to evaluate holds no image. Check config.data.evaluate_split."
            )
        matrix = states["confusion"].to_arrays()["confusion"]
        return EvaluationResult(_one_dictionary(states), matrix, images, samples)

    def _dispatched(self, variables: Any, batches: Iterable[Batch]) -> Iterable[tuple[Batch, Any]]:
        for batch in batches:
            placed = put_batch(self._mesh, {name: batch[name] for name in FIELDS if name in batch})
            yield batch, self._count(variables, placed)


def evaluate_split(
    predictor: Predictor,
    variables: Any,
    batches: Iterable[Batch],
    *,
    info: DatasetInfo,
    mesh: Mesh,
    sample_count: int = 0,
    progress: Callable[[int], None] | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> EvaluationResult:
    """One evaluation, compiled for it; keep an `Evaluator` for several. Arguments as there."""
    evaluator = Evaluator(predictor, info, mesh, metrics)
    return evaluator.evaluate(variables, batches, sample_count=sample_count, progress=progress)


def write_evaluation(
    path: str | os.PathLike[str],
    result: EvaluationResult,
    info: DatasetInfo,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes evaluation.json whole or not at all.

    Args:
      path: the file to write; its folder is made where it is missing.
      result: an evaluation's result.
      info: names the classes.
      extra: further entries, for example split and step; the result's own entries win.
    """
    write_text(path, json.dumps(dict(extra or {}) | result.to_json(info), indent=1, allow_nan=False) + "\n")


def _one_dictionary(states: Mapping[str, State]) -> Scores:
    """The scores of all metrics; two of them must not use the same key."""
    scores: Scores = {}
    for name, state in states.items():
        found = state.compute()
        if shared := scores.keys() & found.keys():
            raise JaxsegError(
                f"config.evaluate.metrics: {name!r} gives {sorted(shared)}, which another metric gives too."
            )
        scores |= found
    return scores


def _one_behind(items: Iterable[Any]) -> Iterable[Any]:
    """The items, each after the next has been asked for: the host decodes while the device still works."""
    waiting: list[Any] = []
    for item in items:
        yield from waiting
        waiting = [item]
    yield from waiting


def _samples(batch: Batch, predictions: np.ndarray) -> list[Sample]:
    """The real rows of a batch, without padding where the batch says how large its images are."""
    found = []
    for row in np.flatnonzero(np.asarray(batch["index"]) >= 0):
        label = np.asarray(batch["label"][row])
        height, width = batch["size"][row] if "size" in batch else label.shape
        image, prediction = np.asarray(batch["image"][row]), predictions[row].astype(np.int32)
        found.append((image[:height, :width], label[:height, :width], prediction[:height, :width]))
    return found


def _local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array whose first axis is the batch."""
    shards = array.addressable_shards
    first = min(shard.index[0].start or 0 for shard in shards)
    last = max(array.shape[0] if shard.index[0].stop is None else shard.index[0].stop for shard in shards)
    rows = np.zeros((last - first, *array.shape[1:]), array.dtype)
    for shard in shards:
        own, *rest = shard.index
        rows[(slice((own.start or 0) - first, None if own.stop is None else own.stop - first), *rest)] = shard.data
    return rows


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
