"""One frozen DatasetInfo per data set: `jaxseg.data.catalog.<name>:INFO`."""
