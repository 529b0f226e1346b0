"""How much the figures would vary with other images: paired bootstrap over the images of a set.

Images, not pixels, are drawn with replacement, since the pixels of one image say nearly the same. Every score is given
the same draws, so differences between scores are differences on equal images. Replicates are computed from each
image's counts at the upper 16 bits of the score, and shifted by what that changes in the figure of all images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypedDict

import numpy as np

from ..metrics.pooled import PooledResult
from .results import Interval

REPLICATES = 1000
_BATCH = 64
_CLASS_BINS = 1 << 16

Coarse = tuple[np.ndarray, np.ndarray]
"""What `PooledMetrics.coarse` gives for one image."""


def draw_weights(images: int, replicates: int = REPLICATES) -> np.ndarray:
    """Replicates × images uint16: how often each image was drawn; the first row is the set itself."""
    rng = np.random.default_rng(0)
    weights = np.ones((replicates + 1, images), np.uint16)
    for row in weights[1:]:
        row[:] = np.bincount(rng.integers(images, size=images), minlength=images)
    return weights


def replicate_figures(frames: Callable[[], Iterable[Coarse]], weights: np.ndarray) -> np.ndarray:
    """Figures of every replicate.

    Args:
        frames: gives the images' counts in their order; called twice, so that they need not be in memory together.
        weights: of `draw_weights`.

    Returns:
        (replicates + 1) × 3 float64: AUROC, AP, FPR95 (first TPR ≥ 0.95); NaN where only one class was drawn.
    """
    bins = np.unique(
        np.concatenate([np.unique(frame_bins % _CLASS_BINS) for frame_bins, _ in frames()] or [np.empty(0, np.int32)])
    )
    counts = np.zeros((2, len(weights), len(bins)))
    batch = np.zeros((_BATCH, 2, len(bins)))
    first = filled = 0
    for frame_bins, pixels in frames():
        batch[filled, frame_bins // _CLASS_BINS, np.searchsorted(bins, frame_bins % _CLASS_BINS)] = pixels
        filled += 1
        if filled == _BATCH:
            counts += _weighted(weights[:, first : first + filled], batch)
            first, filled = first + filled, 0
            batch[:] = 0
    counts += _weighted(weights[:, first : first + filled], batch[:filled])
    return np.concatenate([_figures(*counts[:, row : row + 50]) for row in range(0, len(weights), 50)])


def interval(replicates: np.ndarray, exact: float) -> Interval | None:
    """The central 95 % of a figure's replicates (row 0 the set itself), moved by exact - row 0, within 0…1."""
    shifted = replicates[1:] - replicates[0] + exact
    return central(shifted, 0, 1)


def central(values: np.ndarray, low: float, high: float) -> Interval | None:
    """2.5 % and 97.5 % quantile of those values that are defined."""
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return None
    lower, upper = np.clip(np.quantile(values, [0.025, 0.975]), low, high).tolist()
    return lower, upper


class Intervals(TypedDict):
    auroc_interval: Interval | None
    ap_interval: Interval | None
    fpr95_interval: Interval | None


def intervals(replicates: np.ndarray, result: PooledResult) -> Intervals:
    """Of AUROC, AP and FPR95, around the exact figures; None for one that is not defined."""
    found = [
        None if exact is None else interval(column, exact)
        for column, exact in zip(replicates.T, (result.auroc, result.ap, result.fpr95))
    ]
    return Intervals(auroc_interval=found[0], ap_interval=found[1], fpr95_interval=found[2])


def _weighted(weights: np.ndarray, batch: np.ndarray) -> np.ndarray:
    return np.stack([weights.astype(np.float64) @ batch[:, kind] for kind in (0, 1)])


def _figures(inliers: np.ndarray, outliers: np.ndarray) -> np.ndarray:
    """Replicates × bins, ascending scores → replicates × 3."""
    fp, tp = (np.cumsum(counts[:, ::-1], axis=1) for counts in (inliers, outliers))
    with np.errstate(invalid="ignore", divide="ignore"):
        tpr, fpr = tp / tp[:, -1:], fp / fp[:, -1:]
        precision = np.where(tp > 0, tp / (tp + fp), 0)
        step = np.diff(tpr, axis=1, prepend=0)
        above = np.concatenate([np.zeros((len(fpr), 1)), fpr[:, :-1]], axis=1)
        auroc = np.sum(step * (1 - (above + fpr) / 2), axis=1)
        ap = np.sum(step * precision, axis=1)
        fpr95 = np.take_along_axis(fpr, np.argmax(tpr >= 0.95, axis=1)[:, None], axis=1)[:, 0]
    defined = (tp[:, -1] > 0) & (fp[:, -1] > 0)
    return np.where(defined[:, None], np.stack([auroc, ap, fpr95], axis=1), np.nan)
