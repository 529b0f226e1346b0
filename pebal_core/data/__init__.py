"""Labelled road scenes, outliers to paste into them, and how both become training samples."""
