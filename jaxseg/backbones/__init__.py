"""Feature extractors: image -> {"s2": ..., "s4": ..., ...}, the key is the stride; `jaxseg.backbones.<name>:build`."""
