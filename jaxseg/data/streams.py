"""Random-access sources under the input pipeline: each row is a pure function of its position.

Training reads an endless global stream. Position g belongs to epoch g // n and shows example permutation(seed, epoch)[g
% n], transformed with a generator seeded by (seed, epoch, example). Who computes a row, and when, cannot matter.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxseg.core.errors import BadExampleError, JaxsegError
from jaxseg.data.dataset import Dataset, Split
from jaxseg.data.transforms.augment import Augment

STREAM_LENGTH = 2**48
"""Rows of the "endless" stream; a thousand rows a second would need nine thousand years."""
# What a seed is for is part of it: NumPy pads seeds with zeros, so (1, 2) and (1, 2, 0) give the same numbers.
PERMUTATION, TRANSFORM = 1, 2


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    """The order of the epoch's examples, int64 `[length]`; the last few are kept."""
    order = np.random.default_rng((PERMUTATION, seed, epoch)).permutation(length)
    order.setflags(write=False)
    return order


class Labels:
    """What to do with label values that are neither class nor void."""

    def __init__(self, dataset: Dataset, split: str, policy: str) -> None:
        if policy not in ("raise", "void"):
            raise JaxsegError(f"config.data.invalid_labels = {policy!r}: use 'raise' or 'void'.")
        count, named = dataset.foreign_labels(split)
        self.num_classes, self.void, self.fix = dataset.info.num_classes, dataset.info.void, bool(count)
        # Between processes labels travel as bytes where ids and void fit.
        self.dtype = np.uint8 if self.num_classes <= 256 and 0 <= self.void < 256 else np.int32
        if count and policy == "raise":
            name, values = next(iter(named.items()))
            raise BadExampleError(
                f"{dataset.info.name} {split}: {count} labels hold values that are no class; the first is {name} with "
                f"{values[:8]}. Classes are 0..{self.num_classes - 1}, void is {self.void}. Correct the labels, or set "
                "config.data.invalid_labels='void' to leave such pixels out."
            )

    def __call__(self, label: np.ndarray) -> np.ndarray:
        if self.fix:
            label = np.where((label >= 0) & (label < self.num_classes), label, np.int32(self.void))
        return label.astype(self.dtype, copy=False)


class TrainStream:
    """The process's rows of the endless stream, at random access; picklable, for worker processes.

    Row r of the process's batch k is row `k B + process_index B / process_count + r` of the global stream.
    """

    def __init__(
        self,
        split: Split,
        augment: Augment,
        labels: Callable[[np.ndarray], np.ndarray],
        *,
        seed: int,
        batch_size: int,
        process_index: int,
        process_count: int,
        skip_bad: bool,
        first_batch: int = 0,
    ) -> None:
        self.split, self.augment, self.labels = split, augment, labels
        self.seed, self.batch_size, self.skip_bad, self.first_batch = seed, batch_size, skip_bad, first_batch
        self.rows = batch_size // process_count
        self.first_row = process_index * self.rows

    def __len__(self) -> int:
        return STREAM_LENGTH

    def __getitem__(self, position: int) -> dict[str, Any]:
        """One transformed row: `image`, `label`, `index`, and `replaced`: the bad example it stands for, or -1."""
        batch, row = divmod(int(position), self.rows)
        epoch, place = divmod((self.first_batch + batch) * self.batch_size + self.first_row + row, len(self.split))
        order = permutation(self.seed, epoch, len(self.split))
        # The next good example in the epoch's order stands in for a bad one: the same for any number of workers.
        for step in range(len(order)):
            index = int(order[(place + step) % len(order)])
            try:
                example = self.split[index]
            except BadExampleError:
                if not self.skip_bad:
                    raise
                continue
            replaced = -1 if step == 0 else int(order[place])
            return self._row(example, epoch, index) | {"replaced": np.int32(replaced)}
        raise BadExampleError("Every example of the split is bad. Delete the prepared data and prepare it anew.")

    def _row(self, example: dict[str, Any], epoch: int, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((TRANSFORM, self.seed, epoch, index))
        row = self.augment({"image": example["image"], "label": self.labels(example["label"])}, rng)
        return {"image": row["image"], "label": row["label"], "index": np.int32(index)}


class EvaluateStream:
    """Rows of a split in order, native size, padded to one size; rows past the end pad the last batch."""

    def __init__(
        self,
        split: Split,
        labels: Callable[[np.ndarray], np.ndarray],
        *,
        size: tuple[int, int],
        void: int,
        fill: np.ndarray,
        batch_size: int,
        process_index: int,
        process_count: int,
        skip_bad: bool,
    ) -> None:
        self.split, self.labels, self.size, self.void, self.fill = split, labels, size, void, fill
        self.batch_size, self.skip_bad = batch_size, skip_bad
        self.rows = batch_size // process_count
        self.first_row = process_index * self.rows
        self.batches = -(-len(split) // batch_size)

    def __len__(self) -> int:
        return self.batches * self.rows

    def __getitem__(self, position: int) -> dict[str, Any]:
        """One row; `skipped` is the index of an example that was left out, or -1."""
        batch, row = divmod(int(position), self.rows)
        index = batch * self.batch_size + self.first_row + row
        image = np.empty((*self.size, 3), np.uint8)
        image[...] = self.fill
        label = np.full(self.size, self.void, np.int32)
        skipped, size = -1, np.zeros(2, np.int32)
        if index >= len(self.split):
            index = -1
        else:
            try:
                example = self.split[index]
            except BadExampleError:
                if not self.skip_bad:
                    raise
                skipped, index = index, -1
            else:
                h, w = example["label"].shape
                size[:] = h, w
                image[:h, :w] = example["image"]
                label[:h, :w] = self.labels(example["label"])
        numbers = {"index": np.int32(index), "size": size, "skipped": np.int32(skipped)}
        return {"image": image, "label": label, **numbers}
