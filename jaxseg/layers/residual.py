"""What several branches read or give, and its gradient, written to memory once on CPUs."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from jaxseg.ops.apart import apart, gradient_apart


def unit_output(unit: nn.Module, x: jax.Array) -> jax.Array:
    """x, the sum of a unit's branches, and its gradient, apart from what reads them.

    XLA's CPU fuses a residual sum into its readers although it is written anyway for the next convolution: the 23rd
    unit of a ResNet's stage then sums up 23 convolutions' outputs again, and its gradient too. On two cores the border
    takes 5 % off the train step of DeepLabV3 ResNet-50 at 2x256x256 and 6 % off its inference; a third of DeepLab v2's
    instructions were such sums, so that its program is read from the compilation cache in 4.7 instead of 7.6 s.

    Args:
      unit: the module that made x, with parameters; one of them is the border's witness.
      x: floating, any shape.
    """
    return apart(x, _witness(jax.tree.leaves(unit.variables["params"])))


def input_of_branches(module: nn.Module, x: jax.Array) -> jax.Array:
    """x; its gradient, the sum of what the module's branches give, apart from what reads it.

    XLA's CPU fuses the sum, and the 27 taps of three atrous depthwise branches, into the sums of the norm before:
    24.7 of the 628 ms of processor time of a DeepLabV3+ MobileNetV2 train step at 4x256x256, and once more beside them.

    Args:
      module: the one that the branches belong to; as it makes its parameters, x is returned as it is.
      x: floating, any shape.
    """
    parameters = jax.tree.leaves(module.variables.get("params", {}))
    return gradient_apart(x, _witness(parameters)) if parameters else x


def _witness(parameters: Sequence[jax.Array]) -> jax.Array:
    vectors = [parameter for parameter in parameters if parameter.ndim == 1]
    return (vectors or parameters)[0].ravel()[0]
