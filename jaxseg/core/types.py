"""The types that packages hand to each other: DatasetInfo, Batch, Outputs. No JAX: input workers import them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

Batch = dict[str, Any]
"""One batch, channels last. Keys:

`image` uint8 `[b, h, w, 3]` RGB 0..255; `label` int32 `[b, h, w]`, class ids and `void`;
`index` int32 `[b]`, the example's number in its split, -1 for rows that only pad the batch; when evaluating,
`size` int32 `[b, 2]`, the image's own (height, width) without its padding.
"""

Outputs = dict[str, Any]
"""What a model returns: `logits` `[*b, h, w, classes]` at the input's size, `aux/<name>` logits, named taps.

Where a resize comes last, `coarse/logits` and `coarse/aux/<name>` say of what: see `core.coarse`.
"""


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """The facts of one data set that never change.

    Attributes:
      name: the TFDS builder's name, for example `camvid`.
      class_names: names in the order of the class ids 0..n-1.
      colors: one RGB triple (0..255) a class, the data set's own palette.
      void: label value of pixels that take no part in training or evaluation.
      splits: split name -> number of examples as published; empty where the number is not fixed.
      void_color: RGB triple that stands for void in pictures.
      source: where the data set comes from.
    """

    name: str
    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    void: int
    splits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    void_color: tuple[int, int, int] = (224, 224, 192)
    source: str = ""

    def __post_init__(self) -> None:
        if len(self.class_names) != len(self.colors):
            raise ValueError(f"{self.name}: {len(self.class_names)} class names but {len(self.colors)} colours")
        if 0 <= self.void < len(self.class_names):
            raise ValueError(f"{self.name}: void {self.void} is the id of class {self.class_names[self.void]!r}")

    @property
    def num_classes(self) -> int:
        """Number of classes, void not counted."""
        return len(self.class_names)
