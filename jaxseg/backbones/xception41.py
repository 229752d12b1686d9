"""Xception-41, see `jaxseg.backbones.xception`."""

import functools

from jaxseg.backbones.xception import build_xception

build = functools.partial(build_xception, 41)
