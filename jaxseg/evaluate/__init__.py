"""Evaluation of a split at the native size of its labels."""
