"""Convolution, batch norm and activation: the block that everything is made of."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.layers.norm import BatchNorm, Line, NormOptions, on_rest_of_line, times_factor
from jaxseg.ops.apart import gradient_written
from jaxseg.ops.conv import conv
from jaxseg.ops.twice import conv_of_twice
from jaxseg.ops.widened import widened_conv

Activation = Callable[[jax.Array], jax.Array] | None
Initializer = Callable[..., jax.Array]

PADDINGS = ("same", "torch", "valid")


def he_normal(groups: int = 1) -> Initializer:
    """N(0, 2 / fan_out) with the fan-out of one group: `kh kw n / groups` (He et al., arXiv 1502.01852, eq. 14)."""
    return nn.initializers.variance_scaling(2.0 * groups, "fan_out", "normal")


def classifier_normal() -> Initializer:
    """Truncated normal of standard deviation 0.01, for the convolution that gives the logits."""
    return nn.initializers.truncated_normal(0.01)


def _padding(padding: str | int, kernel_size: tuple[int, int], dilation: int) -> str | Sequence[Sequence[int]]:
    """What ops.conv takes for a `padding` of `Conv`."""
    if padding in ("same", "valid"):
        return str(padding).upper()
    if padding == "torch":
        rows, columns = ((k - 1) // 2 * dilation for k in kernel_size)
        return (rows, rows), (columns, columns)
    if not isinstance(padding, int) or padding < 0:
        raise ValueError(f"padding is one of {PADDINGS} or a number of zeros, not {padding!r}")
    return (padding, padding), (padding, padding)


class Conv(nn.Module):
    """A convolution with float32 parameters `kernel` (HWIO) and, where asked for, `bias`.

    Attributes:
      features: output channels.
      kernel_size: side of the square kernel, or (height, width).
      strides: both directions.
      dilation: atrous rate, both directions.
      groups: depthwise where it equals the input channels.
      padding: "same" as TensorFlow (the odd pixel goes after), "torch": `(k - 1) // 2 * dilation` on every side,
        "valid": none, or that number of zeros on every side.
      use_bias: adds a bias, zero at the start.
      kernel_init: default He normal, fan-out.
      dtype: of the computation and of the result.
      twice: enlarges the image to twice its size first, by repetition, and puts `beside` behind its channels; for a
        3x3 kernel with "same" padding alone.
    """

    features: int
    kernel_size: int | tuple[int, int] = 1
    strides: int = 1
    dilation: int = 1
    groups: int = 1
    padding: str | int = "same"
    use_bias: bool = False
    kernel_init: Initializer | None = None
    dtype: jnp.dtype = jnp.float32
    twice: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, beside: jax.Array | None = None, line: Line | None = None) -> jax.Array:
        """Convolves.

        Args:
          x: `[*b, h, w, c]`.
          beside: with `twice`, `[*b, 2 h, 2 w, d]`.
          line: factor and shift, `[features]` float32, on which the result is put (`conv_then_norm`).

        Returns:
          `[*b, h', w', features]`, with a line `y * factor + shift` of what it is without.
        """
        k = self.kernel_size
        sides = (k, k) if isinstance(k, int) else (k[0], k[1])
        channels = x.shape[-1] if beside is None else x.shape[-1] + beside.shape[-1]
        shape = (*sides, channels // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init or he_normal(self.groups), shape, jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        if line is not None:
            return on_rest_of_line(self._convolved(x, times_factor(kernel, line), beside), bias, line, self.dtype)
        y = self._convolved(x, kernel, beside)
        return y if bias is None else gradient_written(y + bias.astype(self.dtype))

    def _convolved(self, x: jax.Array, kernel: jax.Array, beside: jax.Array | None) -> jax.Array:
        if beside is not None and not self.twice:
            raise ValueError("a map beside the image is for a convolution with twice=True")
        if self.twice:
            if (self.strides, self.dilation, self.groups, self.padding) != (1, 1, 1, "same"):
                raise ValueError("twice is for a convolution of stride, rate and groups 1 with padding 'same'")
            beside = None if beside is None else beside.astype(self.dtype)
            return conv_of_twice(x.astype(self.dtype), kernel.astype(self.dtype), beside)
        window: dict[str, Any] = {
            "strides": self.strides,
            "padding": _padding(self.padding, (kernel.shape[0], kernel.shape[1]), self.dilation),
            "dilation": self.dilation,
            "groups": self.groups,
        }
        if jnp.dtype(self.dtype) == jnp.float32 and x.dtype in (jnp.bfloat16, jnp.float16):
            return widened_conv(x, kernel, **window)
        return conv(x.astype(self.dtype), kernel.astype(self.dtype), **window)


def conv_then_norm(
    conv: Conv, norm: BatchNorm, x: jax.Array, train: bool, beside: jax.Array | None = None
) -> jax.Array:
    """`norm(conv(x, beside), train)`; where the running statistics are used at test, the norm may be in the kernel.

    That is so on NVIDIA GPUs (`times_factor`), but for depthwise and grouped convolutions, whose routines were not
    tried with a shift, and for training with frozen norms, where it saves nothing: DeepLab v2's step, bfloat16, 10
    images, moves 90.5 GB with the norm behind and 90.6 with it in the kernel, by the program compiled for an H200.
    """
    if train or norm.options.of_batch(train) or conv.groups > 1:
        return norm(conv(x, beside), train)
    return conv(x, beside, norm.line(None, conv.features, 0, train))


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, activation.

    Attributes:
      features .. padding: as `Conv`.
      activation: None for a linear output.
      norm: options of the batch norm.
      twice: as `Conv`.
    """

    features: int
    kernel_size: int = 1
    strides: int = 1
    dilation: int = 1
    groups: int = 1
    padding: str | int = "same"
    activation: Activation = nn.relu
    norm: NormOptions = NormOptions()
    kernel_init: Initializer | None = None
    dtype: jnp.dtype = jnp.float32
    twice: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, beside: jax.Array | None = None) -> jax.Array:
        """`[*b, h, w, c] -> [*b, h', w', features]`; `beside` as `Conv`'s."""
        conv = Conv(
            self.features,
            self.kernel_size,
            strides=self.strides,
            dilation=self.dilation,
            groups=self.groups,
            padding=self.padding,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            twice=self.twice,
            name="conv",
        )
        x = conv_then_norm(conv, BatchNorm(self.norm, self.dtype, name="norm"), x, train, beside)
        return x if self.activation is None else self.activation(x)


class SeparableConvNorm(nn.Module):
    """Depthwise k x k and pointwise 1x1 convolution, each with batch norm and activation (or the pointwise one alone).

    Initial values as DeepLab's code: depthwise N(0, 0.33), pointwise N(0, 0.06), both truncated.

    Attributes:
      features .. norm: as `ConvNorm`; strides and dilation belong to the depthwise convolution.
      depthwise_norm: batch norm and activation after the depthwise convolution too (TensorFlow's DeepLab).
    """

    features: int
    kernel_size: int = 3
    strides: int = 1
    dilation: int = 1
    padding: str = "same"
    activation: Activation = nn.relu
    norm: NormOptions = NormOptions()
    depthwise_norm: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[*b, h, w, c] -> [*b, h', w', features]`."""
        c = x.shape[-1]
        shared: dict[str, Any] = {"strides": self.strides, "dilation": self.dilation, "groups": c}
        shared |= {"padding": self.padding, "kernel_init": nn.initializers.truncated_normal(0.33), "dtype": self.dtype}
        if self.depthwise_norm:
            depthwise = ConvNorm(
                c, self.kernel_size, activation=self.activation, norm=self.norm, name="depthwise", **shared
            )
            x = depthwise(x, train)
        else:
            x = Conv(c, self.kernel_size, name="depthwise", **shared)(x)
        return ConvNorm(
            self.features,
            activation=self.activation,
            norm=self.norm,
            kernel_init=nn.initializers.truncated_normal(0.06),
            dtype=self.dtype,
            name="pointwise",
        )(x, train)


def separable_or_plain(separable: bool, depthwise_norm: bool = True, **shared: Any) -> Callable[..., nn.Module]:
    """The constructor of a 3x3 convolution with batch norm that is depthwise separable, or is not.

    Args:
      separable: SeparableConvNorm instead of ConvNorm.
      depthwise_norm: the former's option.
      **shared: arguments of both.
    """
    if separable:
        return functools.partial(SeparableConvNorm, depthwise_norm=depthwise_norm, **shared)
    return functools.partial(ConvNorm, **shared)
