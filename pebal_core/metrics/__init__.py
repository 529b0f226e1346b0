"""Metrics that take in a data set frame by frame: `update`, `merge` across processes, `compute`."""
