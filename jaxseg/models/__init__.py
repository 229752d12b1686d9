"""One file a paper family; the file's name is the config's name: `jaxseg.models.<name>:build`."""
