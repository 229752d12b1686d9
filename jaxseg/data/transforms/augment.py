"""What training does to one example, from the config's options."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxseg.core.names import call_with_options
from jaxseg.data.transforms import color, geometry


@dataclasses.dataclass(frozen=True)
class Augment:
    """Scale, crop, flip and colour jitter of one example; pure in (example, rng).

    Attributes:
      crop_size_px: (h, w) of the result.
      void: label value of the padding.
      mean_pixel: RGB of the image's padding.
      scale_range: low and high of the random scale.
      flip_probability: of a left-right flip.
      color_jitter: strengths, see transforms.color.jitter.
    """

    crop_size_px: tuple[int, int]
    void: int
    mean_pixel: Sequence[float] = (0.0, 0.0, 0.0)
    scale_range: tuple[float, float] = (1.0, 1.0)
    flip_probability: float = 0.0
    color_jitter: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        geometry.check_options(self.crop_size_px, self.scale_range, self.flip_probability)
        call_with_options(color.check_options, dict(self.color_jitter), where="config.data.color_jitter")

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Applies one sampled geometry to every field, and the jitter to the image.

        Args:
          example: `image` uint8 `[h, w, 3]`, `label` `[h, w]`; optional `weights` `[h, w]` (per pixel, nearest
            neighbour like the label they belong to, 0 in the padding) and `points` `[n, 2]` (x, y). Other fields pass
            through.
          rng: the example's own generator.

        Returns:
          the example at the crop's size.
        """
        size = example["image"].shape[:2]
        where = geometry.sample_geometry(
            rng,
            size,
            crop_size_px=self.crop_size_px,
            scale_range=self.scale_range,
            flip_probability=self.flip_probability,
        )
        out = dict(example)
        seen = color.jitter(rng, geometry.warp_image(example["image"], where), **self.color_jitter)
        out["image"] = geometry.place(seen, where, mean_fill(self.mean_pixel))
        for name, fill in (("label", self.void), ("weights", 0)):
            if name in example:
                out[name] = geometry.place(geometry.warp_nearest(example[name], where), where, fill)
        if "points" in example:
            out["points"] = geometry.move_points(example["points"], where)
        return out


def mean_fill(mean_pixel: Sequence[float]) -> np.ndarray:
    """The mean pixel as the uint8 `[3]` that padding holds."""
    return np.clip(np.rint(np.asarray(mean_pixel, np.float64)), 0, 255).astype(np.uint8)
