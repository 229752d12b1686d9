"""Flax blocks that two or more architectures use."""
