"""Confidence intervals of the figures by a paired bootstrap over the images of a set.

Images are drawn with replacement, not pixels, because the pixels of one image are strongly correlated. Every score is
given the same draws, so that scores are compared on equal images. A replicate is computed from each image's counts in
about two thousand groups of neighbouring scores. Grouping changes the figure of all images slightly, and every
replicate is shifted back by this change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypedDict

import numpy as np

from ..metrics.pages import score_keys
from ..metrics.pooled import PooledResult
from .results import Interval

REPLICATES = 1000
_BATCH = 64
_BITS = 20  # bits of a score that are kept for an image: steps of 1/256 nat for energies from 8 to 16
_BINS = 1 << _BITS
_GROUPS = 2048

Coarse = tuple[np.ndarray, np.ndarray]
"""The result of `coarse_counts` for one image."""


def coarse_counts(score: np.ndarray, target: np.ndarray) -> Coarse:
    """Count the pixels of a frame by the upper 20 bits of their score, which makes a small summary.

    Args:
        score, target: as of `PooledMetrics.update`.

    Returns:
        Two int32 arrays of one length: the bins that occur, ascending in score (inliers have bins from 0 on, outliers
        from 2^20 on), and the number of pixels in each.

    Examples:
        >>> score, target = np.array([[-8, -8.0001, -2]], np.float32), np.array([[0, 0, 1]])
        >>> bins, pixels = coarse_counts(score, target)
        >>> pixels.tolist(), (bins >= 1 << 20).tolist()  # two inliers in one bin, one outlier
        ([2, 1], [False, True])
    """
    bins, pixels = [], []
    for kind in (0, 1):
        counts = np.bincount(score_keys(score[target == kind]) >> (32 - _BITS), minlength=_BINS)
        present = np.flatnonzero(counts)
        bins.append(present + kind * _BINS)
        pixels.append(counts[present])
    return np.concatenate(bins).astype(np.int32), np.concatenate(pixels).astype(np.int32)


def draw_weights(images: int, replicates: int = REPLICATES) -> np.ndarray:
    """How often each replicate draws each image, (replicates + 1) × images uint16; the first row is the set itself.

    Examples:
        >>> weights = draw_weights(images=3, replicates=2)
        >>> weights[0].tolist(), weights.sum(axis=1).tolist()
        ([1, 1, 1], [3, 3, 3])
    """
    rng = np.random.default_rng(0)
    weights = np.ones((replicates + 1, images), np.uint16)
    for row in weights[1:]:
        row[:] = np.bincount(rng.integers(images, size=images), minlength=images)
    return weights


def replicate_figures(frames: Callable[[], Iterable[Coarse]], weights: np.ndarray) -> np.ndarray:
    """Compute the figures of every replicate.

    Args:
        frames: gives the counts of the images in order. It is called twice, so that they need not all be in memory.
        weights: of `draw_weights`.

    Returns:
        (replicates + 1) × 3 float64: AUROC, AP, FPR95 (first TPR ≥ 0.95); NaN where only one class was drawn.

    Examples:
        >>> target = np.array([[0, 0, 1]])
        >>> counts = [coarse_counts(np.array([[-8, -4, high]], np.float32), target) for high in (-2, -6)]
        >>> figures = replicate_figures(lambda: counts, np.array([[1, 1], [2, 0], [0, 2]], np.uint16))
        >>> figures[:, 0].tolist()  # AUROC of both images, of the first and of the second
        [0.75, 1.0, 0.5]
    """
    pooled = np.zeros(2 * _BINS)
    for bins, pixels in frames():
        pooled[bins] += pixels
    group_of = _group(pooled.reshape(2, _BINS))
    width = int(group_of.max()) + 1
    counts = np.zeros((2, len(weights), width))
    batch = np.zeros((_BATCH, 2 * width))
    first = filled = 0
    for bins, pixels in frames():
        kind, bin_ = np.divmod(bins, _BINS)
        batch[filled] = np.bincount(group_of[bin_] + kind * width, pixels, 2 * width)
        filled += 1
        if filled == _BATCH:
            counts += _weighted(weights[:, first : first + filled], batch)
            first, filled = first + filled, 0
    counts += _weighted(weights[:, first : first + filled], batch[:filled])
    return np.concatenate([_figures(*counts[:, row : row + 50]) for row in range(0, len(weights), 50)])


def _group(pooled: np.ndarray) -> np.ndarray:
    """Assign each bin to a group of neighbours with a small share of the inliers and of the outliers; 2×bins pixels."""
    shares = pooled / np.maximum(pooled.sum(axis=1, keepdims=True), 1)
    position = np.floor(np.cumsum(shares.sum(axis=0)) * (_GROUPS / 2)).astype(np.int64)
    return np.unique(position, return_inverse=True)[1]


def _interval(replicates: np.ndarray, exact: float) -> Interval | None:
    """The central 95 % of a figure's replicates, shifted by exact - row 0 (the set itself), within 0…1."""
    shifted = replicates[1:] - replicates[0] + exact
    return central(shifted, 0, 1)


def central(values: np.ndarray, low: float, high: float) -> Interval | None:
    """2.5 % and 97.5 % quantile of the values that are defined, clipped; None where none is.

    Examples:
        >>> central(np.arange(1001) / 1000, low=0.1, high=1)
        (0.1, 0.975)
    """
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
    """The intervals of AUROC, AP and FPR95 around the exact figures; None for a figure that is not defined.

    Examples:
        >>> replicates = np.repeat(np.linspace(0.8, 0.9, 1001)[:, None], 3, axis=1)
        >>> result = PooledResult(2, 90, 10, auroc=0.8, ap=None, fpr95=0.8)
        >>> found = intervals(replicates, result)
        >>> [round(end, 3) for end in found["auroc_interval"]], found["ap_interval"]
        ([0.803, 0.898], None)
    """
    found = [
        None if exact is None else _interval(column, exact)
        for column, exact in zip(replicates.T, (result.auroc, result.ap, result.fpr95))
    ]
    return Intervals(auroc_interval=found[0], ap_interval=found[1], fpr95_interval=found[2])


def _weighted(weights: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Rows × images weights, images × (2·groups) pixels → 2 × rows × groups."""
    return (weights.astype(np.float64) @ batch).reshape(len(weights), 2, -1).swapaxes(0, 1)


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
