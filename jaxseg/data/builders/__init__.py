"""One TFDS builder per data set: `jaxseg.data.builders.<name>:build`. TensorFlow is never needed."""
