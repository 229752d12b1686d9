"""Shapes: scenes that the project draws itself; 5 shapes x 4 textures over textured backgrounds."""

from jaxseg.core.types import DatasetInfo
from jaxseg.data.catalog.voc2012_segmentation import voc_color

SHAPES = ("disc", "square", "triangle", "cross", "ring")
TEXTURES = ("plain", "striped", "checked", "dotted")

CLASS_NAMES = ("background", *(f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES))

INFO = DatasetInfo(
    name="shapes",
    class_names=CLASS_NAMES,
    colors=tuple(voc_color(i) for i in range(len(CLASS_NAMES))),
    void=255,
    splits={},
    void_color=voc_color(255),
    source="drawn by jaxseg.data.shapes_scene, seeded",
)
