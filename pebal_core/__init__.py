"""PEBAL: pixel-wise energy-biased abstention learning for anomaly segmentation (ECCV 2022)."""
