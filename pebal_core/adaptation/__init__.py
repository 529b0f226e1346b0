"""Adapts a model to one camera, using only footage of that camera (``pebal adapt``)."""
