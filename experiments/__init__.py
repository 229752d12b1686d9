"""One ml_collections config a result; each file has `get_config(arg)`."""
