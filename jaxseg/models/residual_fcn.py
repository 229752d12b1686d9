"""The importance of skip connections in biomedical image segmentation (Drozdzal et al. 2016, arXiv 1608.04117).

| part | blocks | channels |
|---|---|---|
| first | 3x3 convolution | 32 |
| down | two simple blocks, stages of 3, 8 and 10 bottlenecks; each begins by halving | 32, 32; 128, 256, 512 |
| across | 3 bottlenecks; the first halves, the last doubles | 1024 |
| up | stages of 10, 8 and 3 bottlenecks, two simple blocks; each ends by doubling | 512, 256, 128; 32, 32 |
| last | batch norm, ReLU, 3x3 convolution; 1x1 classifier | 32; classes |

Halving and doubling are of rows and columns. Batch norm and ReLU stand before each convolution. A bottleneck is 1x1
(stride 2 where it halves), 3x3, 1x1 to four times the channels, before which each pixel is repeated where it doubles. A
simple block is one 3x3 convolution, after 2x2 max-pooling or before a repetition. Short skips add a block's input to
its output, every second pixel of it or each pixel twice, through a 1x1 convolution where channels differ. Long skips
add the map that the down path had at the same size, the up path's map going through a 1x1 convolution where channels
differ; one spans from the first convolution to the last.

Differences from the paper: the layout is that of the authors' code (fcn_maker). Classes come as logits, one each,
instead of one sigmoid. Sizes round up, and what a repetition has too much is cut off.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.core.errors import JaxsegError
from jaxseg.core.types import Outputs
from jaxseg.layers.conv_norm import Conv
from jaxseg.layers.dropout import Dropout
from jaxseg.layers.image import check_image
from jaxseg.layers.norm import BatchNorm, NormOptions
from jaxseg.layers.residual import unit_output
from jaxseg.ops.pooling import max_pool
from jaxseg.ops.twice import twice

he_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Convolution(nn.Module):
    """Batch norm, ReLU, convolution with bias.

    Attributes:
      double: repeats each pixel, of a 1x1 convolution alone: after it, which gives the same as before it.
    """

    features: int
    kernel_size: int = 1
    strides: int = 1
    double: bool = False
    norm: NormOptions = NormOptions()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[*b, h, w, c] -> [*b, h', w', features]`."""
        x = nn.relu(BatchNorm(self.norm, self.dtype, name="norm")(x, train))
        conv = Conv(
            self.features,
            self.kernel_size,
            strides=self.strides,
            padding="torch",
            use_bias=True,
            kernel_init=he_fan_in,
            dtype=self.dtype,
            name="conv",
        )
        return twice(conv(x)) if self.double else conv(x)


class Block(nn.Module):
    """A bottleneck (output four times `features`), or a simple block of one 3x3 convolution.

    Attributes:
      features: channels of the 3x3 convolution.
      bottleneck: which of the two.
      halve, double: what happens to rows and columns.
      short_skip: add the input.
      dropout_rate: on the branch, in training only.
    """

    features: int
    bottleneck: bool = True
    halve: bool = False
    double: bool = False
    short_skip: bool = True
    dropout_rate: float = 0.0
    norm: NormOptions = NormOptions()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[*b, h, w, c] -> [*b, h', w', features or 4 features]`."""
        shared: dict[str, Any] = {"norm": self.norm, "dtype": self.dtype}
        dropout = Dropout(self.dropout_rate, deterministic=not train)
        if self.bottleneck:
            y = Convolution(self.features, strides=2 if self.halve else 1, name="conv1", **shared)(x, train)
            y = Convolution(self.features, 3, name="conv2", **shared)(y, train)
            y = dropout(Convolution(4 * self.features, double=self.double, name="conv3", **shared)(y, train))
        else:
            y = nn.relu(BatchNorm(self.norm, self.dtype, name="norm")(x, train))
            y = max_pool(y, 2, ceil=True) if self.halve else y
            conv = Conv(
                self.features, 3, use_bias=True, kernel_init=he_fan_in, dtype=self.dtype, padding="torch", name="conv"
            )
            y = dropout(conv(y))
            y = twice(y) if self.double else y
        if not self.short_skip:
            return y
        x = x[..., ::2, ::2, :] if self.halve else x
        if x.shape[-1] != y.shape[-1]:
            adapt = Conv(y.shape[-1], use_bias=True, kernel_init=he_fan_in, dtype=self.dtype, name="shortcut")
            x = adapt(x)
        x = twice(x) if self.double else x
        return unit_output(self, y + x[..., : y.shape[-3], : y.shape[-2], :])


class ResidualFCN(nn.Module):
    """See `build`."""

    num_classes: int
    width: int = 32
    simple_blocks: int = 2
    depths: tuple[int, ...] = (3, 8, 10, 3)
    short_skips: bool = True
    long_skips: bool = True
    dropout_rate: float = 0.1
    norm: NormOptions = NormOptions()
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """`[*b, h, w, 3]` -> `logits` `[*b, h, w, classes]` float32, taps `down0` .., `across`, `up0` .."""
        check_image(image, model="residual_fcn")
        first = Conv(
            self.width, 3, padding="torch", use_bias=True, kernel_init=he_fan_in, dtype=self.dtype, name="first"
        )
        dropout = Dropout(self.dropout_rate, deterministic=not train)
        x = dropout(first(image))
        outputs, downs = {"down0": x}, [x]
        *mains, across = self.depths
        stages = [(self.width, 1, False)] * self.simple_blocks
        stages += [(self.width * 2**i, depth, True) for i, depth in enumerate(mains)]
        for i, (features, units, bottleneck) in enumerate(stages, start=1):
            x = self._stage(x, train, f"down{i}", features, units, bottleneck, halve=True)
            outputs[f"down{i}"] = x
            downs.append(x)
        x = self._stage(x, train, "across", self.width * 2 ** len(mains), across, True, halve=True, double=True)
        outputs["across"] = x
        for i, (features, units, bottleneck) in reversed(list(enumerate(stages, start=1))):
            x = self._merged(x, downs[i], f"skip{i}")
            x = self._stage(x, train, f"up{i}", features, units, bottleneck, double=True)
            outputs[f"up{i}"] = x
        x = self._merged(x, downs[0], "skip0")
        x = Convolution(self.width, 3, norm=self.norm, dtype=self.dtype, name="last")(x, train)
        outputs["up0"] = x = dropout(x)
        classifier = Conv(self.num_classes, use_bias=True, kernel_init=he_fan_in, name="classifier")
        outputs["logits"] = classifier(x)
        return outputs

    def _stage(
        self,
        x: jax.Array,
        train: bool,
        name: str,
        features: int,
        units: int,
        bottleneck: bool,
        halve: bool = False,
        double: bool = False,
    ) -> jax.Array:
        """`units` blocks; the first halves, the last doubles."""
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        for i in range(units):
            x = block(
                features,
                bottleneck,
                halve=halve and i == 0,
                double=double and i == units - 1,
                short_skip=self.short_skips,
                dropout_rate=self.dropout_rate,
                norm=self.norm,
                dtype=self.dtype,
                name=f"{name}_unit{i + 1}",
            )(x, train)
        return x

    def _merged(self, x: jax.Array, skip: jax.Array, name: str) -> jax.Array:
        """Cut to the size of the down path's map, and with long skips added to it."""
        x = x[..., : skip.shape[-3], : skip.shape[-2], :]
        if not self.long_skips:
            return x
        if x.shape[-1] != skip.shape[-1]:
            conv = Conv(skip.shape[-1], use_bias=True, kernel_init=he_fan_in, dtype=self.dtype, name=name)
            x = conv(x)
        return x + skip


def build(
    *,
    num_classes: int,
    width: int = 32,
    simple_blocks: int = 2,
    depths: Sequence[int] = (3, 8, 10, 3),
    short_skips: bool = True,
    long_skips: bool = True,
    dropout_rate: float = 0.1,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    freeze_norm: bool = False,
    remat: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> nn.Module:
    """The residual FCN.

    Args:
      num_classes: classes, void not counted.
      width: channels of the first convolution, the simple blocks and the first stage's 3x3 convolutions.
      simple_blocks: their number on each path.
      depths: bottlenecks of each stage down, and of the across stage as the last number.
      short_skips: residual connections of the blocks; without any skip, training of the deep network stalls.
      long_skips: sums from the down path into the up path.
      dropout_rate: in every block.
      norm_momentum, norm_epsilon, freeze_norm: batch norm.
      remat: recompute each block in the backward pass.
      dtype: of the computation; parameters and logits are float32.

    Returns:
      A module, `module.apply(variables, image, train)`.

    Raises:
      JaxsegError: no stage, or a number below 1.
    """
    depths = tuple(depths)
    if not depths or min(depths) < 1 or width < 1 or simple_blocks < 0:
        raise JaxsegError(
            f"residual_fcn: depths = {depths} and width = {width} are positive, simple_blocks = {simple_blocks} not "
            "negative."
        )
    return ResidualFCN(
        num_classes=num_classes,
        width=width,
        simple_blocks=simple_blocks,
        depths=depths,
        short_skips=short_skips,
        long_skips=long_skips,
        dropout_rate=dropout_rate,
        norm=NormOptions(norm_momentum, norm_epsilon, freeze_norm),
        remat=remat,
        dtype=dtype,
    )
