"""From the footage of one camera to a model for that camera: ``pebal adapt``."""
