"""From 8-bit images to logits and labels: whole image, several scales, mirrored, in windows."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxseg.core.errors import JaxsegError
from jaxseg.core.normalize import normalize
from jaxseg.ops.argmax import class_argmax
from jaxseg.ops.resize import resize


@dataclasses.dataclass(frozen=True)
class Predictor:
    """What evaluation and prediction share: the same image gives the same labels in both.

    With one scale, no mirroring and no window, the logits are the model's own. Otherwise the softmax probabilities of
    all views are averaged: an image is resized by each scale (bilinear, half-pixel centres) and seen as it is and
    mirrored; the logits are resized to the image's size before the softmax. With a window, each view is covered by
    overlapping windows and the probabilities of a pixel's windows are averaged first.

    Attributes:
      model: Flax module, `apply(variables, image, train=False)["logits"]` at the input's size.
      mean: per channel, 0..255.
      std: per channel, 0..255.
      num_classes: number of classes.
      scales: factors of the image's size.
      flip: whether the mirrored image is seen as well.
      window_px: (height, width) of the window; () for the whole image. A view that is smaller is padded with the mean.
      stride_px: (height, width) from one window to the next; () for two thirds of the window, rounded up.

    Raises:
      JaxsegError: a scale, window or stride that cannot be.
    """

    model: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window_px: tuple[int, ...] = ()
    stride_px: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        # Configs hand over lists; a frozen dataclass is hashed, so tuples it must be.
        for name in ("mean", "std", "scales", "window_px", "stride_px"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.scales or not all(0 < s < float("inf") for s in self.scales):
            raise JaxsegError(f"config.evaluate.scales = {self.scales}: give at least one scale, all above 0.")
        if self.window_px and (len(self.window_px) != 2 or min(self.window_px) < 1):
            raise JaxsegError(f"config.evaluate.window_px = {self.window_px} is not () or (height, width) in pixels.")
        if self.stride_px:
            fits = len(self.stride_px) == 2 and len(self.window_px) == 2
            if not fits or not all(1 <= s <= w for s, w in zip(self.stride_px, self.window_px, strict=True)):
                raise JaxsegError(
                    f"stride_px = {self.stride_px} with window_px = {self.window_px}: the stride is (height, width), "
                    "at least 1 and at most the window, or pixels would be left out."
                )

    def logits(self, variables: Any, image: ArrayLike) -> jax.Array:
        """Logits at the image's size; log of the averaged probabilities where there are several views or windows.

        Args:
          variables: what `model.apply` takes.
          image: uint8 `[*b, h, w, 3]`, RGB 0..255.

        Returns:
          float32 `[*b, h, w, num_classes]`.
        """
        view = normalize(image, mean=self.mean, std=self.std)
        if self.scales == (1.0,) and not self.flip and not self.window_px:
            return self._model_logits(variables, view)
        size = view.shape[-3], view.shape[-2]
        total = sum(self._at_scale(variables, view, size, scale) for scale in self.scales)
        views = len(self.scales) * (2 if self.flip else 1)
        return finite_log(total / views)

    def labels(self, variables: Any, image: ArrayLike) -> jax.Array:
        """The class of the largest logit: the first where several are equal, the first NaN where there is one.

        Args:
          variables: what `model.apply` takes.
          image: uint8 `[*b, h, w, 3]`, RGB 0..255.

        Returns:
          int32 `[*b, h, w]`.
        """
        return class_argmax(self.logits(variables, image))

    def labels_and_probabilities(self, variables: Any, image: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """`labels`, int32 `[*b, h, w]`, and the softmax of `logits`, float32 `[*b, h, w, num_classes]`."""
        logits = self.logits(variables, image)
        return class_argmax(logits), jax.nn.softmax(logits)

    @property
    def stride(self) -> tuple[int, ...]:
        """`stride_px`, or what it is where it was not given; () without a window."""
        return self.stride_px or tuple(-(-2 * w // 3) for w in self.window_px)

    def window_probabilities(self, variables: Any, view: jax.Array) -> jax.Array:
        """Softmax of the model's logits of one window: normalised `[*b, h, w, 3]` -> float32 `[*b, h, w, c]`."""
        return jax.nn.softmax(self._model_logits(variables, view))

    def _model_logits(self, variables: Any, view: jax.Array) -> jax.Array:
        logits = self.model.apply(variables, view, train=False)["logits"]
        if logits.shape != (*view.shape[:-1], self.num_classes):
            raise ValueError(
                f"the model gives logits {logits.shape} for an image {view.shape}; expected the image's size and "
                f"{self.num_classes} classes"
            )
        return logits.astype(jnp.float32)

    def _at_scale(self, variables: Any, image: jax.Array, size: tuple[int, int], scale: float) -> jax.Array:
        """Probabilities at `size` of the image seen at one scale, summed over mirrored or not."""
        scaled_size = scaled(size[0], scale), scaled(size[1], scale)
        view = image if scaled_size == size else resize(image, scaled_size, alignment="half_pixel")

        def probabilities(view: jax.Array) -> jax.Array:
            if self.window_px:
                averaged = self._windowed(variables, view)
                return averaged if scaled_size == size else resize(averaged, size, alignment="half_pixel")
            logits = self._model_logits(variables, view)
            logits = logits if scaled_size == size else resize(logits, size, alignment="half_pixel")
            return jax.nn.softmax(logits)

        if not self.flip:
            return probabilities(view)
        return _sum_over_mirrored(probabilities, view, self.num_classes, size)

    def _windowed(self, variables: Any, view: jax.Array) -> jax.Array:
        """Probabilities `[*b, h, w, c]`, averaged over the windows that hold a pixel."""
        height, width = view.shape[-3], view.shape[-2]
        window = self.window_px[0], self.window_px[1]
        short = max(window[0] - height, 0), max(window[1] - width, 0)
        padded = jnp.pad(view, [(0, 0)] * (view.ndim - 3) + [(0, short[0]), (0, short[1]), (0, 0)])
        rows = window_starts(padded.shape[-3], window[0], self.stride[0])
        columns = window_starts(padded.shape[-2], window[1], self.stride[1])
        # A factor and not a divisor: XLA divides by constants in another way than by variables, and BandedLabels, where
        # it is a variable, is to give the same bits.
        share = np.float32(1) / (windows_over(rows, window[0])[:, None] * windows_over(columns, window[1]))
        starts = np.asarray([(top, left) for top in rows for left in columns], np.int32)

        def add(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
            lead = (jnp.zeros((), jnp.int32),) * (view.ndim - 3)
            corner = (*lead, start[0], start[1], jnp.zeros((), jnp.int32))
            patch = jax.lax.dynamic_slice(padded, corner, (*view.shape[:-3], *window, view.shape[-1]))
            here = jax.lax.dynamic_slice(total, corner, (*view.shape[:-3], *window, self.num_classes))
            here = here + self.window_probabilities(variables, patch)
            return jax.lax.dynamic_update_slice(total, here, corner), None

        # A scan, so that the model is compiled once and not once a window.
        total = jnp.zeros((*padded.shape[:-1], self.num_classes), jnp.float32)
        total = jax.lax.scan(add, total, jnp.asarray(starts))[0] * share[..., None]
        return total[..., :height, :width, :]


def _sum_over_mirrored(
    function: Callable[[jax.Array], jax.Array], view: jax.Array, channels: int, size: tuple[int, int]
) -> jax.Array:
    """`function(view) + mirror(function(mirror(view)))`; a scan, so that the model is compiled once."""

    def add(total: jax.Array, mirrored: jax.Array) -> tuple[jax.Array, None]:
        result = function(jnp.where(mirrored, view[..., ::-1, :], view))
        return total + jnp.where(mirrored, result[..., ::-1, :], result), None

    start = jnp.zeros((*view.shape[:-3], *size, channels), jnp.float32)
    return jax.lax.scan(add, start, jnp.asarray([False, True]))[0]


def finite_log(probabilities: ArrayLike) -> jax.Array:
    """`log max(p, 2^-126)`: underflow would give -inf, which no later arithmetic survives."""
    return jnp.log(jnp.maximum(probabilities, jnp.finfo(jnp.float32).tiny))


def windows_over(starts: Sequence[int], window: int) -> np.ndarray:
    """How many windows along one axis hold a pixel.

    Args:
      starts: first pixels of the windows, ascending, from 0.
      window: pixels of a window.

    Returns:
      float32 `[starts[-1] + window]`; ([0, 1], 2) gives 1, 2, 1.
    """
    pixels = np.arange(starts[-1] + window)
    ends = np.add(starts, window)
    return (np.searchsorted(starts, pixels, "right") - np.searchsorted(ends, pixels, "right")).astype(np.float32)


def scaled(length: int, scale: float) -> int:
    """`length * scale`, rounded half up, at least 1."""
    return max(1, int(np.floor(length * scale + 0.5)))


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one axis: every `stride`, the last window flush with the end.

    Args:
      length: pixels to cover, at least `window`.
      window: pixels of a window.
      stride: pixels from one window to the next, at most `window`.

    Returns:
      Ascending starts; (10, 4, 3) gives [0, 3, 6], (11, 4, 3) gives [0, 3, 6, 7].
    """
    return [*range(0, length - window, stride), length - window]
