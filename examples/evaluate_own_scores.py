"""Evaluate your own scores, given as pairs of files NAME.npy (H×W float32, higher = more anomalous) and NAME.png.

    python examples/evaluate_own_scores.py SCORES LABELS

The PNG files in LABELS hold the ground truth: 0 for known things, 1 for anomalies and 255 for ignored pixels.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

import pebal_core


def main(scores: str, labels: str) -> None:
    metrics = pebal_core.PooledMetrics()
    for path in sorted(Path(scores).glob("*.npy")):
        target = cv2.imread(str(Path(labels) / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED)
        if target is None:
            sys.exit(f"{path} has no label image {path.stem}.png in {labels}.")
        metrics.update(np.load(path), target, name=path.stem)
    result = metrics.compute()
    if result.ap is None or result.auroc is None or result.fpr95 is None:
        sys.exit(f"{scores} cannot be evaluated: {result.undefined}.")
    print(f"AUROC {result.auroc:.4f}, AP {result.ap:.4f}, FPR95 {result.fpr95:.4f} on {result.images} images")


if __name__ == "__main__":
    main(*sys.argv[1:])
