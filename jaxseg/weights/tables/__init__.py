"""One module a kind of checkpoint: TABLE, IGNORED and EXPECTS, see `jaxseg.weights.load.load_weights`."""
