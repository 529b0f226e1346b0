"""Metrics that accumulate a data set frame by frame, with `update`, `merge` across processes, and `compute`."""
