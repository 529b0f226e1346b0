"""Labelled road scenes, outliers to paste into them, and the training samples made from both."""
