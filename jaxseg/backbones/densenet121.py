"""DenseNet-121, see `jaxseg.backbones.densenet`."""

import functools

from jaxseg.backbones.densenet import build_densenet

build = functools.partial(build_densenet, 121)
