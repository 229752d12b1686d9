"""What every network asks of its input and of its output stride."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxseg.core.errors import JaxsegError


def check_image(image: jax.Array, *, model: str, min_size: int = 1) -> None:
    """Raises JaxsegError unless the image is floating `[*b, h, w, 3]` of at least `min_size` pixels a side."""
    if image.ndim < 3 or image.shape[-1] != 3:
        raise JaxsegError(f"{model} takes RGB images [*batch, height, width, 3], not an array of shape {image.shape}.")
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise JaxsegError(
            f"{model} takes normalised floating-point images, not {image.dtype}: "
            "call jaxseg.core.normalize.normalize first."
        )
    if min(image.shape[-3:-1]) < min_size:
        raise JaxsegError(f"{model} takes images of at least {min_size} x {min_size} pixels, not {image.shape[-3:-1]}.")


def check_output_stride(output_stride: int, *, allowed: Sequence[int], model: str) -> None:
    """Raises JaxsegError unless the output stride is one that the network can be built for."""
    if output_stride not in allowed:
        given = ", ".join(map(str, allowed))
        raise JaxsegError(f"{model}: output_stride = {output_stride} is not possible; it is one of {given}.")
