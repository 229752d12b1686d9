"""From a split to batches: shuffle, transform, batch, prefetch. The same rows for any number of workers and processes.

Every row is a pure function of its position (streams.py), so the state of an iterator is one number. Grain computes the
rows in worker processes and puts them in order.
"""

import collections
import concurrent.futures
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import grain
import numpy as np

from jaxseg.core.errors import JaxsegError
from jaxseg.core.names import call_with_options
from jaxseg.core.types import Batch
from jaxseg.data import workers
from jaxseg.data.dataset import Dataset, Split
from jaxseg.data.streams import EvaluateStream, Labels, TrainStream
from jaxseg.data.transforms.augment import Augment, mean_fill

AUGMENT_KEYS = ("crop_size_px", "scale_range", "flip_probability", "color_jitter")


class TrainIterator(grain.DatasetIterator):
    """Batches of a TrainStream in order; its state is the number of batches delivered, whoever computed them.

    Grain's own state depends on the number of workers, so a run could not go on with another number; this one can, and
    with another number of processes too. Workers start at the first `next` or at `start_prefetch`.

    Grain starts its processes at the first `next` and not at its own `start_prefetch`, so the first batch is asked for
    in a thread.

    Attributes:
      replaced: names of bad examples met so far -> how often another one stood in.
    """

    def __init__(self, open_at: Callable[[int], grain.DatasetIterator], split: Split, identity: dict[str, int]) -> None:
        super().__init__()
        self._open_at, self._split, self._identity = open_at, split, identity
        self._inner: grain.DatasetIterator | None = None
        self._first: concurrent.futures.Future[Any] | None = None
        self._next_batch = 0
        self.replaced: collections.Counter[str] = collections.Counter()

    def start_prefetch(self) -> None:
        """Starts the workers, so that the first batch is ready when it is asked for."""
        if self._inner is None:
            if self._closed:
                raise ValueError("the iterator is closed")
            self._inner = self._open_at(self._next_batch)
            thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="first_batch")
            with workers.signals_held():  # the thread, and the processes that it starts, inherit this
                self._first = thread.submit(next, self._inner)
            thread.shutdown(wait=False)

    def __next__(self) -> Batch:
        self.start_prefetch()
        assert self._inner is not None
        first, self._first = self._first, None
        element = first.result() if first else next(self._inner)
        self._next_batch += 1
        # Copies out of the workers' shared memory: JAX on a CPU may keep looking at an array for longer than we know.
        batch = {name: np.array(value, np.int32 if name == "label" else None) for name, value in element.items()}
        for index in batch.pop("replaced"):
            if index >= 0:
                self._count(self._split.name_of(int(index)))
        return batch

    def _count(self, name: str) -> None:
        if not self.replaced[name]:
            print(f"{name}: no longer decodes; another example stands in for it.", file=sys.stderr)
        self.replaced[name] += 1

    def get_state(self) -> dict[str, Any]:
        """JSON: `next_batch` and what the stream is made of."""
        return {"next_batch": self._next_batch, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from a state of the same stream.

        Raises:
          JaxsegError: the state is one of another seed, batch size or number of examples.
        """
        for key, value in self._identity.items():
            if state.get(key) != value:
                raise JaxsegError(
                    f"The saved position of the input has {key} = {state.get(key)}, this run has {value}; the order of "
                    "the data would not go on. Resume with the same config and data, or start in a new work directory."
                )
        self._stop()
        self._next_batch = int(state["next_batch"])

    def _stop(self) -> None:
        if self._first:
            concurrent.futures.wait([self._first])  # its error, if it has one, belongs to a batch nobody asked for
        if self._inner is not None:
            self._inner.close()
        self._inner, self._first = None, None

    def close(self) -> None:
        """Ends the workers; safe to call twice."""
        self._closed = True
        self._stop()


def train_batches(
    data_config: Mapping[str, Any],
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    mean_pixel: Sequence[float],
    process_index: int = 0,
    process_count: int = 1,
) -> TrainIterator:
    """The process's rows of the endless stream of training batches.

    Args:
      data_config: `train_split`, `crop_size_px`, and optional `scale_range`, `flip_probability`, `color_jitter`,
        `workers` (0: a thread of this process), `prefetch_batches`, `invalid_labels`, `on_bad_example`.
      dataset: what open_dataset returned.
      batch_size: rows of the global batch.
      seed: 0 or more.
      mean_pixel: RGB of the images' padding, 0..255.
      process_index: which rows, 0..process_count - 1.
      process_count: must divide the batch size.

    Returns:
      iterator of `image` uint8 `[b, h, w, 3]`, `label` int32 `[b, h, w]`, `index` int32 `[b]` with b = batch_size /
      process_count; close it when done.
    """
    _check_rows(batch_size, process_index, process_count)
    if seed < 0:
        raise JaxsegError(f"config.seed = {seed}: use 0 or more.")
    name = data_config["train_split"]
    split = dataset.split(name)
    options = {key: data_config[key] for key in AUGMENT_KEYS if key in data_config}
    options = {k: dict(v) if isinstance(v, Mapping) or hasattr(v, "items") else v for k, v in options.items()}
    augment = call_with_options(
        Augment, options, where="config.data", void=dataset.info.void, mean_pixel=tuple(mean_pixel)
    )
    labels = Labels(dataset, name, data_config.get("invalid_labels", "raise"))
    count, depth = int(data_config.get("workers", 0)), max(1, int(data_config.get("prefetch_batches", 2)))

    def open_at(first_batch: int) -> grain.DatasetIterator:
        stream = TrainStream(
            split,
            augment,
            labels,
            seed=seed,
            batch_size=batch_size,
            process_index=process_index,
            process_count=process_count,
            skip_bad=data_config.get("on_bad_example", "raise") == "skip",
            first_batch=first_batch,
        )
        return _iterate(stream, rows=stream.rows, workers_count=count, depth=depth)

    return TrainIterator(open_at, split, {"seed": seed, "batch_size": batch_size, "examples": len(split)})


def _iterate(source: Any, *, rows: int, workers_count: int, depth: int) -> grain.DatasetIterator:
    """Batches of a random-access source in order, by worker processes or, where there are none, by one thread."""
    batches = grain.MapDataset.source(source).batch(rows)
    workers.mark_flags_parsed()
    if workers_count == 0:
        cv2.setNumThreads(0)
        return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=depth)))
    buffer = max(1, -(-depth // workers_count))
    rows_bytes = sum(np.asarray(value).nbytes for value in source[0].values()) * rows
    # Grain holds up to three buffers a worker: in the worker's queue, in its hands, and before the reader.
    shared = workers.shared_memory_holds(2 * rows_bytes * workers_count * (3 * buffer + 1))
    batches = grain.experimental.WithOptionsIterDataset(
        batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)),
        grain.experimental.DatasetOptions(min_shm_size=4096 if shared else 2**62),
    )
    options = grain.MultiprocessingOptions(num_workers=workers_count, per_worker_buffer_size=buffer)
    return iter(batches.mp_prefetch(options, worker_init_fn=workers.start))


def _check_rows(batch_size: int, process_index: int, process_count: int) -> None:
    if batch_size < 1 or batch_size % process_count:
        raise JaxsegError(f"batch size {batch_size} does not divide by {process_count} processes; choose a multiple.")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} of {process_count}")


class EvaluateBatches(Iterator[Batch]):
    """Iterator over a split's batches; `len()` is their number, `skipped` names what was left out."""

    def __init__(self, stream: EvaluateStream, *, depth: int) -> None:
        self._stream = stream
        self._inner = _iterate(stream, rows=stream.rows, workers_count=0, depth=depth)
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return self._stream.batches

    def __next__(self) -> Batch:
        batch = dict(next(self._inner))
        for index in batch.pop("skipped"):
            if index >= 0:
                self.skipped.append(self._stream.split.name_of(int(index)))
                print(f"{self.skipped[-1]}: no longer decodes; left out.", file=sys.stderr)
        return batch

    def close(self) -> None:
        """Ends the reading thread; safe to call twice."""
        self._inner.close()


def evaluate_batches(
    data_config: Mapping[str, Any],
    dataset: Dataset,
    split: str,
    *,
    batch_size: int,
    mean_pixel: Sequence[float],
    process_index: int = 0,
    process_count: int = 1,
) -> EvaluateBatches:
    """The process's rows of a split, every example once, in order, at native size; labels are never resized.

    Args:
      data_config: optional `evaluate_size_px` (h, w) that every row is padded to at the bottom and right (default: the
        split's largest), `prefetch_batches`, `invalid_labels`, `on_bad_example`.
      dataset: what open_dataset returned.
      split: its name.
      batch_size: rows of the global batch.
      mean_pixel: RGB of the images' padding, 0..255.
      process_index: which rows, 0..process_count - 1.
      process_count: must divide the batch size.

    Returns:
      iterator of `image` uint8 `[b, h, w, 3]`, `label` int32 `[b, h, w]` (void in the padding), `index` int32 `[b]`, -1
      for rows that only fill the last batch, and `size` int32 `[b, 2]`, (height, width) without the padding.

    Raises:
      JaxsegError: an image of the split is larger than evaluate_size_px.
    """
    _check_rows(batch_size, process_index, process_count)
    largest = dataset.max_size(split)
    size = tuple(int(n) for n in data_config.get("evaluate_size_px") or largest)
    if len(size) != 2 or size[0] < largest[0] or size[1] < largest[1]:
        raise JaxsegError(
            f"config.data.evaluate_size_px = {size} is smaller than the largest of split {split!r}, {largest} (height, "
            "width). Images are evaluated at their own size; give at least that, or () for just that."
        )
    stream = EvaluateStream(
        dataset.split(split),
        Labels(dataset, split, data_config.get("invalid_labels", "raise")),
        size=(size[0], size[1]),
        void=dataset.info.void,
        fill=mean_fill(mean_pixel),
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        skip_bad=data_config.get("on_bad_example", "raise") == "skip",
    )
    return EvaluateBatches(stream, depth=max(1, int(data_config.get("prefetch_batches", 2))))
