"""Draws the scenes of the data set `shapes`: textured objects over a textured background, void around them.

Every shape has a range of hues of its own and every texture its pattern, both varied, under a background of muted
colours: a small network learns it in minutes, and must look at both colour and pattern, and tell what is in front.
"""

import colorsys
import dataclasses

import cv2
import numpy as np

from jaxseg.data.catalog.shapes import INFO, SHAPES, TEXTURES

HUE_SPREAD = 0.06
"""Hues of one shape lie within this many turns of its own; neighbours are 0.2 turns apart."""
VOID_PX = 3


@dataclasses.dataclass(frozen=True)
class Scene:
    """One drawn scene: image uint8 `[h, w, 3]` RGB, label uint8 `[h, w]` with void 255 around objects."""

    image: np.ndarray
    label: np.ndarray


def draw_scene(
    rng: np.random.Generator,
    *,
    size_px: tuple[int, int],
    first_class: int | None = None,
    count_range: tuple[int, int] = (3, 6),
    radius_range: tuple[float, float] = (0.11, 0.3),
) -> Scene:
    """Draws one scene from back to front.

    Args:
      rng: decides everything; the same state draws the same scene.
      size_px: (h, w).
      first_class: class (1..20) of one of the objects, so that a small split can hold every class; default: any.
      count_range: fewest and most objects.
      radius_range: smallest and largest radius of an object in parts of the shorter side; log-uniform.

    Returns:
      the scene.
    """
    image = _background(rng, size_px)
    ids = np.zeros(size_px, np.uint8)
    classes = rng.integers(1, INFO.num_classes, rng.integers(count_range[0], count_range[1] + 1))
    if first_class is not None:
        # In front, so that it is seen.
        classes[-1] = first_class
    for class_id in classes:
        radius = min(size_px) * np.exp(rng.uniform(*np.log(radius_range)))
        center = rng.uniform(0.05, 0.95, 2) * (size_px[1], size_px[0])
        _draw_object(rng, image, ids, int(class_id), center, radius)
    light = _smooth_noise(rng, size_px, cells=2)[..., None] * 0.25 + 0.875
    noise = rng.normal(0, 6, (*size_px, 1)) + rng.normal(0, 3, (*size_px, 3))
    image = np.clip(image * light + noise, 0, 255).astype(np.uint8)
    return Scene(image, _with_void(ids))


def _smooth_noise(rng: np.random.Generator, size: tuple[int, int], *, cells: int) -> np.ndarray:
    """Float32 `[h, w]` in 0..1 that changes `cells` times across the picture."""
    coarse = rng.random((cells + 2, cells + 2)).astype(np.float32)
    return np.clip(cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC), 0, 1)


def _color(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32) * 255


def _background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Two muted colours mixed by noise of a random grain, faint ripples over it."""
    first, second = (_color(rng.random(), rng.uniform(0, 0.25), rng.uniform(0.25, 0.9)) for _ in range(2))
    mix = _smooth_noise(rng, size, cells=int(rng.choice([3, 6, 12, 24])))[..., None]
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 30)
    ripple = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)[..., None]
    return first * mix + second * (1 - mix) + ripple * rng.uniform(0, 12)


def _draw_object(
    rng: np.random.Generator, image: np.ndarray, ids: np.ndarray, class_id: int, center: np.ndarray, radius: float
) -> None:
    """Paints one object into image and ids, in its bounding box alone."""
    shape, texture = divmod(class_id - 1, len(TEXTURES))
    h, w = ids.shape
    reach = radius * 1.45
    x0, x1 = max(0, int(center[0] - reach)), min(w, int(center[0] + reach) + 2)
    y0, y1 = max(0, int(center[1] - reach)), min(h, int(center[1] + reach) + 2)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    x, y = x - np.float32(center[0]), y - np.float32(center[1])
    # Coordinates of the object: its radius is 1, its axes are turned.
    u = (x * np.cos(angle) + y * np.sin(angle)) / radius
    v = (-x * np.sin(angle) + y * np.cos(angle)) / radius
    inside = _inside(SHAPES[shape], u, v)
    hue = shape / len(SHAPES) + rng.uniform(-HUE_SPREAD, HUE_SPREAD)
    bright = _color(hue, rng.uniform(0.6, 1.0), rng.uniform(0.7, 1.0))
    dark = bright * rng.uniform(0.15, 0.4)
    # The pattern keeps its size in pixels, within bounds, whatever the object's size: a crop shows the same texture.
    period = rng.uniform(6, 9) / radius
    share = _pattern(TEXTURES[texture], u / period, v / period)[..., None]
    image[y0:y1, x0:x1][inside] = (bright * share + dark * (1 - share))[inside]
    ids[y0:y1, x0:x1][inside] = class_id


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Which points belong to a shape of radius 1 about the origin."""
    distance = np.hypot(u, v)
    if shape == "disc":
        return distance < 1
    if shape == "square":
        return np.maximum(abs(u), abs(v)) < 0.88
    if shape == "triangle":
        return (v < 0.6) & (v > 1.732 * abs(u) - 1.2)
    if shape == "cross":
        return (np.minimum(abs(u), abs(v)) < 0.32) & (np.maximum(abs(u), abs(v)) < 1.05)
    if shape == "ring":
        return (distance < 1.05) & (distance > 0.55)
    raise ValueError(f"no shape {shape!r}")


def _pattern(texture: str, s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Share of the bright colour, 0..1, at coordinates in which the pattern has period 1."""
    if texture == "plain":
        return np.ones_like(s)
    if texture == "striped":
        return (np.mod(s, 1) < 0.5).astype(np.float32)
    if texture == "checked":
        return (np.mod(np.floor(s * 1.4) + np.floor(t * 1.4), 2) < 1).astype(np.float32)
    if texture == "dotted":
        return (np.hypot(np.mod(s, 1) - 0.5, np.mod(t, 1) - 0.5) > 0.3).astype(np.float32)
    raise ValueError(f"no texture {texture!r}")


def _with_void(ids: np.ndarray) -> np.ndarray:
    """Void where another id lies within the window of VOID_PX."""
    window = np.ones((VOID_PX, VOID_PX), np.uint8)
    edge = cv2.dilate(ids, window) != cv2.erode(ids, window)
    return np.where(edge, np.uint8(INFO.void), ids)
