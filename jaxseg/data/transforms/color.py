"""Colour jitter as one affine map of RGB: brightness, contrast, saturation and hue in a single pass over the pixels."""

import cv2
import numpy as np

from jaxseg.core.errors import JaxsegError

LUMA = np.array([0.299, 0.587, 0.114])
TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


def check_options(*, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0) -> None:
    """Raises JaxsegError where a strength is out of range."""
    limits = {
        "brightness": (brightness, 1),
        "contrast": (contrast, 1),
        "saturation": (saturation, 1),
        "hue": (hue, 0.5),
    }
    for name, (value, limit) in limits.items():
        if not 0 <= value <= limit:
            raise JaxsegError(f"config.data.color_jitter.{name} = {value}: give a number between 0 and {limit}.")


def jitter_matrix(*, brightness: float, contrast: float, saturation: float, turn: float, grey: float) -> np.ndarray:
    """`[3, 4]`: `rgb' = turn(saturate(contrast * (brightness * rgb - g) + g))`, with g the image's own mean grey.

    Args:
      brightness: factor, 1 leaves the image as it is.
      contrast: factor about the mean grey.
      saturation: factor about each pixel's own grey (0: a grey picture).
      turn: rotation of hue in turns, -0.5..0.5.
      grey: mean of the image's luma (0..255), before brightness.

    Returns:
      float64 `[3, 4]`, the last column is the offset. Grey pixels stay grey under saturation and turn.
    """
    saturate = saturation * np.eye(3) + (1 - saturation) * np.tile(LUMA, (3, 1))
    angle = 2 * np.pi * turn
    rotate = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]], dtype=np.float64
    )
    linear = np.linalg.inv(TO_YIQ) @ rotate @ TO_YIQ @ saturate if turn else saturate
    offset = linear @ np.full(3, (1 - contrast) * brightness * grey)
    return np.concatenate([contrast * brightness * linear, offset[:, None]], axis=1)


def jitter(
    rng: np.random.Generator,
    image: np.ndarray,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> np.ndarray:
    """Draws `factor ~ U(1 - s, 1 + s)` for each strength s, `turn ~ U(-hue, hue)`, and maps the image by them.

    Args:
      rng: the example's own generator; four numbers are drawn whatever the strengths are.
      image: uint8 `[h, w, 3]` RGB.
      brightness: strength 0..1.
      contrast: strength 0..1.
      saturation: strength 0..1.
      hue: strength in turns, 0..0.5; hue is rotated in YIQ, where it is linear.

    Returns:
      uint8 `[h, w, 3]`, clipped to 0..255 once at the end. With all strengths 0 the image itself.
    """
    draws = rng.uniform(-1, 1, 4)
    if not (brightness or contrast or saturation or hue):
        return image
    factors = 1 + draws[:3] * (brightness, contrast, saturation)
    grey = float(LUMA @ np.asarray(cv2.mean(image)[:3]))
    matrix = jitter_matrix(
        brightness=factors[0], contrast=factors[1], saturation=factors[2], turn=draws[3] * hue, grey=grey
    )
    return cv2.transform(image, matrix)
