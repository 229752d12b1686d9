"""Exact metrics: integer state on the device, 64-bit sums on the host."""
