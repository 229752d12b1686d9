"""MobileNetV3-large, see `jaxseg.backbones.mobilenet_v3`."""

import functools

from jaxseg.backbones.mobilenet_v3 import build_mobilenet_v3

build = functools.partial(build_mobilenet_v3, "large")
