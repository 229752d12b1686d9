"""Augmentation: everything is sampled once from the example's generator and applied to every field alike."""
