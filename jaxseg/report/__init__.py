"""What a person sees of a run: bar, metrics file, TensorBoard events, pictures, table, one HTML page."""
