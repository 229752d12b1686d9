"""From 8-bit pixels to what a network sees. Runs on the device, so that batches travel as bytes."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import ArrayLike

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
INCEPTION_MEAN = (127.5, 127.5, 127.5)
INCEPTION_STD = (127.5, 127.5, 127.5)


def normalize(image: ArrayLike, *, mean: Sequence[float], std: Sequence[float]) -> jnp.ndarray:
    """`(image - mean) / std` per channel, in float32.

    Args:
      image: `[*b, h, w, c]`, 0..255.
      mean: c values, in units of the image (0..255).
      std: c values, in units of the image, all positive.

    Returns:
      float32 `[*b, h, w, c]`. TF-slim's MobileNet and Xception expect mean = std = 127.5, that is [-1, 1].
    """
    image = jnp.asarray(image)
    if image.shape[-1] != len(mean) or len(mean) != len(std):
        raise ValueError(f"image has {image.shape[-1]} channels, mean {len(mean)} values, std {len(std)} values")
    if min(std) <= 0:
        raise ValueError(f"std must be positive, not {tuple(std)}")
    return (image.astype(jnp.float32) - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
