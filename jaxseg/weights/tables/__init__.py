"""One module a kind of checkpoint: TABLE (jaxseg name -> Source) and IGNORED (name prefix -> reason)."""
