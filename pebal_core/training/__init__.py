"""Offline training: a segmentation network from labelled images, and PEBAL fine-tuning of any network."""
