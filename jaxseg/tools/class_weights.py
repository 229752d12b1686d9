"""`python -m jaxseg.tools.class_weights --config=experiments/NAME.py`: weights of classes, from a data set's labels.

Counts every pixel of a split at its native size, shows a table, and writes the weights to a JSON file that
`config.loss.<name>.class_weights` takes.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from absl import app, flags
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jaxseg.core.errors import BadExampleError, JaxsegError
from jaxseg.core.files import write_text
from jaxseg.core.types import DatasetInfo
from jaxseg.data.dataset import Dataset, open_dataset
from jaxseg.data.decode import decode_label
from jaxseg.data.streams import Labels
from jaxseg.losses import weighting
from jaxseg.main import fail, parse_flags, speak_plainly

# --config, --split and --output are those of jaxseg.main.
METHOD = flags.DEFINE_enum("method", "median_frequency", weighting.METHODS, "Formula, see jaxseg.losses.weighting.")
BETA = flags.DEFINE_float("beta", None, "effective_number: beta in [0, 1). Default: 1 - 1 / pixels of the split.")


@dataclasses.dataclass(frozen=True)
class ClassCounts:
    """Exact counts of a split.

    Attributes:
      pixels: int64 `[c]`, pixels of each class.
      image_pixels: int64 `[c]`, pixels that are not void of the images that contain the class.
      images: number of images.
      class_images: int64 `[c]`, number of images that contain the class.
      void: number of void pixels.
    """

    pixels: np.ndarray
    image_pixels: np.ndarray
    images: int
    class_images: np.ndarray
    void: int


def count_labels(labels: Iterable[np.ndarray], num_classes: int) -> ClassCounts:
    """Counts label maps one after another, so that only one is in memory.

    Args:
      labels: integers `[h, w]`; what is no class id is void.
      num_classes: number of classes.
    """
    pixels, image_pixels, class_images = (np.zeros(num_classes, np.int64) for _ in range(3))
    images = void = 0
    for label in labels:
        inside = label[(label >= 0) & (label < num_classes)]
        found = np.bincount(inside.astype(np.int64), minlength=num_classes)
        pixels += found
        image_pixels[found > 0] += inside.size
        class_images += found > 0
        images, void = images + 1, void + label.size - inside.size
    return ClassCounts(pixels, image_pixels, images, class_images, void)


def label_maps(dataset: Dataset, split: str, data_config: Any) -> Iterable[np.ndarray]:
    """The label maps of a split at native size, images left encoded; under the config's rules for bad data."""
    labels = Labels(dataset, split, data_config.invalid_labels)
    for part in dataset.split(split).parts:
        for index in range(len(part)):
            encoded = part[index]
            try:
                label = decode_label(encoded["label"], name=encoded["name"].decode())
            except BadExampleError:
                if data_config.on_bad_example != "skip":
                    raise
                continue
            yield labels(label.astype(np.int32))


def weigh(method: str, counts: ClassCounts, *, beta: float | None = None) -> np.ndarray:
    """float64 `[c]`: the weights by one of `weighting.METHODS`.

    Args:
      method: which formula.
      counts: of a split.
      beta: for `effective_number`; None: the paper's `(N - 1) / N` with N the number of pixels, because the values it
        tries, .9 to .9999, are for counts of images.

    Raises:
      JaxsegError: no pixel of the split belongs to a class, or beta is out of its range.
    """
    if not counts.pixels.any():
        raise JaxsegError("No pixel of the split belongs to a class; there is nothing to weigh by.")
    if method == "median_frequency":
        return weighting.median_frequency(counts.pixels, counts.image_pixels)
    if method == "effective_number":
        beta = 1 - 1 / float(counts.pixels.sum()) if beta is None else beta
        if not 0 <= beta < 1:
            raise JaxsegError(f"--beta={beta} is not in [0, 1).")
        return weighting.effective_number(counts.pixels, beta=beta)
    if method == "inverse_frequency":
        return weighting.inverse_frequency(counts.pixels)
    return weighting.inverse_log(counts.pixels)


def to_json(info: DatasetInfo, split: str, method: str, counts: ClassCounts, weights: np.ndarray) -> dict[str, Any]:
    """What the file holds; `class_weights` and `classes` are what a config reads."""
    return {
        "dataset": info.name,
        "split": split,
        "method": method,
        "images": counts.images,
        "void_pixels": counts.void,
        "classes": list(info.class_names),
        "pixels": counts.pixels.tolist(),
        "image_pixels": counts.image_pixels.tolist(),
        "class_images": counts.class_images.tolist(),
        "class_weights": [float(f"{w:.6g}") for w in weights],
    }


def show(record: dict[str, Any], console: Console) -> None:
    """Prints the table and the line for a config."""
    total = sum(record["pixels"]) + record["void_pixels"]
    table = Table(title=f"{record['dataset']} {record['split']}, {record['images']} images, {record['method']}")
    for title in ("class", "pixels", "share", "images", "weight"):
        table.add_column(title, justify="left" if title == "class" else "right")
    rows = zip(record["classes"], record["pixels"], record["class_images"], record["class_weights"], strict=True)
    for name, pixels, images, weight in rows:
        table.add_row(name, f"{pixels:,}", f"{pixels / total:.3%}", str(images), f"{weight:.4f}")
    table.add_row("void", f"{record['void_pixels']:,}", f"{record['void_pixels'] / total:.3%}", "", "")
    console.print(table)
    absent = [name for name, pixels in zip(record["classes"], record["pixels"], strict=True) if not pixels]
    if absent:
        console.print(f"Without a pixel in this split: {', '.join(absent)}.", soft_wrap=True)
    line = ", ".join(f"{weight:g}" for weight in record["class_weights"])
    console.print(f'config.loss = {{"cross_entropy": {{"class_weights": ({line},)}}}}', soft_wrap=True)


def run(config: Any, *, split: str, method: str, beta: float | None = None, output: pathlib.Path | None) -> int:
    """Counts, shows and writes; returns the exit status."""
    dataset = open_dataset(config.data)
    maps = label_maps(dataset, split, config.data)
    progress = track(maps, total=len(dataset.split(split)), description="counting", console=Console(stderr=True))
    counts = count_labels(progress, dataset.info.num_classes)
    record = to_json(dataset.info, split, method, counts, weigh(method, counts, beta=beta))
    show(record, Console(highlight=False, markup=False))
    if output is not None:
        write_text(output, json.dumps(record, indent=1) + "\n")
        print(f"Written: {output}")
        print(f"A config takes the file as it is: config.loss.cross_entropy.class_weights = {str(output)!r}")
    return 0


def main(arguments: Sequence[str]) -> None:
    """Runs the command; what a user can mend is printed as a sentence."""
    speak_plainly()
    config = flags.FLAGS.config
    if len(arguments) > 1:
        fail(f"{arguments[1]!r} is not a flag; flags look like --method=median_frequency.")
    if config is None:
        fail("--config is missing, for example --config=experiments/deeplab_camvid.py")
    output = pathlib.Path(flags.FLAGS.output) if flags.FLAGS.output else None
    try:
        split = flags.FLAGS.split or config.data.train_split
        sys.exit(run(config, split=split, method=METHOD.value, beta=BETA.value, output=output))
    except JaxsegError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error}. Correct the path or its permissions, or make room on the disk.")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
