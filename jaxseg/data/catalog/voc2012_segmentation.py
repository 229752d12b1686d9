"""PASCAL VOC 2012 segmentation: 20 object classes and background."""

from jaxseg.core.types import DatasetInfo


def voc_color(class_id: int) -> tuple[int, int, int]:
    """The VOC palette by bit interleaving: bit 3j of the id goes to bit 7-j of red, 3j+1 to green, 3j+2 to blue.

    Args:
      class_id: 0..255. `voc_color(1) == (128, 0, 0)`, `voc_color(255) == (224, 224, 192)`.

    Returns:
      red, green, blue in 0..255.

    Reference: the VOC development kit's VOClabelcolormap.
    """
    red, green, blue = (
        sum(((class_id >> (3 * j + channel)) & 1) << (7 - j) for j in range(8) if 3 * j + channel < 8)
        for channel in range(3)
    )
    return red, green, blue


CLASS_NAMES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

INFO = DatasetInfo(
    name="voc2012_segmentation",
    class_names=CLASS_NAMES,
    colors=tuple(voc_color(i) for i in range(len(CLASS_NAMES))),
    void=255,
    splits={"train": 1464, "val": 1449, "trainval": 2913, "train_aug": 10582},
    void_color=voc_color(255),
    source="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ and, for train_aug, the Semantic Boundaries Dataset (SBD)",
)
