"""Labels of an image of any size in bands of rows: memory for the overlap of two rows of windows, not for the image."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.core.errors import JaxsegError
from jaxseg.core.normalize import normalize
from jaxseg.inference.predictor import Predictor, finite_log, window_starts, windows_over
from jaxseg.ops.argmax import class_argmax


def has_bands(predictor: Predictor) -> bool:
    """Whether `BandedLabels` takes it: windows, at one scale of 1 and not mirrored."""
    return bool(predictor.window_px) and predictor.scales == (1.0,) and not predictor.flip


class BandedLabels:
    """`Predictor.labels` of one image, a band of rows after another, in the same order of additions.

    Windows run from left to right, their rows from top to bottom. What is kept on the device is the sum of one window's
    probabilities, which moves with it, and of each row of windows the rows that the next one overlaps:
    `(window height - stride) * image width * classes * 4` bytes. The model is compiled once for all sizes of images.
    """

    def __init__(self, predictor: Predictor) -> None:
        """Raises JaxsegError where the predictor has no windows, other scales, or mirrors: those need whole images."""
        if not has_bands(predictor):
            raise JaxsegError(
                f"config.evaluate: window_px = {predictor.window_px}, scales = {predictor.scales}, flip = "
                f"{predictor.flip}: bands need a window, scales = (1.0,) and flip = False."
            )
        self._predictor = predictor
        self._add = jax.jit(self._added, donate_argnums=1)
        self._label = jax.jit(lambda total, share: class_argmax(finite_log(total * share[..., None]))[0])
        self._take = jax.jit(_taken, donate_argnums=1)
        self._keep = jax.jit(_kept, donate_argnums=0)

    def __call__(self, variables: Any, image: np.ndarray) -> Iterator[np.ndarray]:
        """Bands from top to bottom; together they are `predictor.labels(variables, image)`.

        Args:
          variables: what `model.apply` takes.
          image: uint8 `[h, w, 3]`, RGB 0..255, anything that NumPy can slice.

        Yields:
          int32 `[n, w]`; the n add up to h.
        """
        (height, width), (h, w) = self._predictor.window_px, image.shape[:2]
        tops = window_starts(max(h, height), height, self._predictor.stride[0])
        lefts = window_starts(max(w, width), width, self._predictor.stride[1])
        over_rows, over_columns = windows_over(tops, height)[:, None], windows_over(lefts, width)
        # The last window is flush with the border: it may overlap by more rows than the others.
        overlap = max((height - (b - a) for a, b in itertools.pairwise(tops)), default=1)
        kept = jnp.zeros((1, max(overlap, 1), lefts[-1] + width, self._predictor.num_classes), jnp.float32)
        total = jnp.zeros((1, height, width, self._predictor.num_classes), jnp.float32)
        held = 0
        for top, below in zip(tops, [*tops[1:], tops[-1] + height], strict=True):
            band = np.empty((below - top, lefts[-1] + width), np.int32)
            before = -width
            for left, right in zip(lefts, [*lefts[1:], lefts[-1] + width], strict=True):
                total = self._take(kept, total, left, left - before, held)
                total = self._add(variables, total, *self._patch(image, top, left))
                kept = self._keep(kept, total, left)
                share = np.float32(1) / (over_rows[top : top + height] * over_columns[left : left + width])
                labels = self._label(total, share)
                band[:, left:right] = np.asarray(labels)[: below - top, : right - left]
                before = left
            held = height - (below - top)
            yield band[: h - top, :w]

    def _patch(self, image: np.ndarray, top: int, left: int) -> tuple[np.ndarray, np.ndarray]:
        """Bytes `[1, height, width, 3]` of a window, and how many rows and columns of it are the image's."""
        height, width = self._predictor.window_px
        found = image[top : top + height, left : left + width]
        patch = np.zeros((1, height, width, 3), np.uint8)
        patch[0, : found.shape[0], : found.shape[1]] = found
        return patch, np.asarray(found.shape[:2], np.int32)

    def _added(self, variables: Any, total: jax.Array, patch: jax.Array, real: jax.Array) -> jax.Array:
        """`total` and the window's probabilities; what the window has beyond the image is the mean pixel."""
        view = normalize(patch, mean=self._predictor.mean, std=self._predictor.std)
        rows, columns = (jnp.arange(n, dtype=jnp.int32) for n in view.shape[1:3])
        inside = (rows < real[0])[:, None, None] & (columns < real[1])[:, None]
        return total + self._predictor.window_probabilities(variables, jnp.where(inside, view, 0.0))


def _taken(kept: jax.Array, total: jax.Array, left: jax.Array, moved: jax.Array, held: jax.Array) -> jax.Array:
    """The sum of the window at `left`: of the window `moved` pixels before it, and in new columns of the row above.

    Args:
      kept: float32 `[1, n, w, c]`, the last rows of the windows above; the lowest `held` of them lie in this window.
      total: float32 `[1, height, width, c]`, the window before.
      left: first column of the window.
      moved: columns from the window before to this one.
      held: 0..n.
    """
    _, height, width, classes = total.shape
    above = jax.lax.dynamic_slice_in_dim(kept, left, width, axis=2)
    below = jnp.zeros((1, height, width, classes), total.dtype)
    fresh = jnp.concatenate([above, below], axis=1)
    fresh = jax.lax.dynamic_slice_in_dim(fresh, kept.shape[1] - held, height, axis=1)
    shifted = jax.lax.dynamic_slice_in_dim(jnp.concatenate([total, total], axis=2), moved, width, axis=2)
    column = jnp.arange(width, dtype=jnp.int32)[:, None]
    return jnp.where(column < width - moved, shifted, fresh)


def _kept(kept: jax.Array, total: jax.Array, left: jax.Array) -> jax.Array:
    """`kept` with the last rows of the window at `left`; the windows after it overwrite what they add to."""
    return jax.lax.dynamic_update_slice_in_dim(kept, total[:, -kept.shape[1] :], left, axis=2)
