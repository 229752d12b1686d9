"""Facts of the data sets."""

import pytest

from jaxseg.core.names import known_names, resolve
from jaxseg.data.catalog.shapes import INFO as SHAPES
from jaxseg.data.catalog.voc2012_segmentation import INFO as VOC
from jaxseg.data.catalog.voc2012_segmentation import voc_color


@pytest.mark.parametrize(
    ("class_id", "color"),
    [
        (0, (0, 0, 0)),
        (1, (128, 0, 0)),
        (6, (0, 128, 128)),
        (8, (64, 0, 0)),
        (13, (192, 0, 128)),
        (20, (0, 64, 128)),
        (255, (224, 224, 192)),
    ],
)
def test_voc_palette_interleaves_bits(class_id, color):
    assert voc_color(class_id) == color


@pytest.mark.parametrize("name", ["camvid", "shapes", "voc2012_segmentation"])
def test_every_builder_has_its_facts(name):
    info = resolve("data.catalog", name, "INFO")
    assert info.name == name
    assert callable(resolve("data.builders", name))
    assert name in known_names("data.builders")


def test_counts_and_ids():
    camvid = resolve("data.catalog", "camvid", "INFO")
    assert (camvid.num_classes, camvid.void, camvid.splits["train"], camvid.splits["val"]) == (11, 11, 367, 101)
    assert camvid.class_names[3] == "road" and camvid.colors[4] == (60, 40, 222)
    assert (VOC.num_classes, VOC.void, VOC.splits["train_aug"]) == (21, 255, 10582)
    assert VOC.class_names[15] == "person" and VOC.colors[15] == (192, 128, 128)
    assert SHAPES.num_classes == 21 and len(set(SHAPES.class_names)) == 21
    assert SHAPES.class_names[1] == "plain disc" and SHAPES.class_names[20] == "dotted ring"
