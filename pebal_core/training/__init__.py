"""Offline training of segmentation networks from labelled images, and PEBAL fine-tuning of any network."""
