"""`ce`, the short name of `cross_entropy` in a config."""

from jaxseg.losses.cross_entropy import build, cross_entropy

__all__ = ["build", "cross_entropy"]
