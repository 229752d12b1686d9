"""ResNet-34, see `jaxseg.backbones.resnet`."""

import functools

from jaxseg.backbones.resnet import build_resnet

build = functools.partial(build_resnet, 34)
