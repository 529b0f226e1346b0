"""Pixel-wise metrics of anomaly detection, pooled over all pixels of a data set: AUROC, AP, FPR95, best F1, curves.

A pixel is predicted as an anomaly if its score is at least a threshold t. With P outlier and N inlier pixels,

    TP(t), FP(t)  outlier, inlier pixels with score ≥ t
    recall = TPR = TP / P        FPR = FP / N        precision = TP / (TP + FP)

All figures are exact. They equal scikit-learn's on the concatenated pixels (`roc_auc_score`, `average_precision_score`,
`roc_curve` with `drop_intermediate=False`), including ties and infinite scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pebal_core.metrics.checks import check_scores
from pebal_core.metrics.score_counts import OutlierScores, ScoreCounts

FPR95_DEFINITIONS: dict[str, str] = {
    "first_at_least": "at the highest threshold with TPR ≥ 0.95 (Fishyscapes, SegmentMeIfYouCan)",
    "first_above": "at the highest threshold with TPR > 0.95 (RbA, DenseHybrid)",
    "nearest": "at the TPR nearest to 0.95 (the higher of two), there at the lowest threshold, but none "
    "below the lowest outlier score (PEBAL)",
    "bins100": "at the TPR nearest to 0.95 (the lower of two) among the edges of 100 equal bins from the "
    "lowest to the highest finite score (Meta-OoD, whose scores span 0 to 1)",
}
"""Common definitions of the false positive rate at 95 % true positive rate."""

_RECALL = 0.95


@dataclass(frozen=True)
class Curve:
    """Operating points from the highest threshold down, thinned out for plotting.

    All arrays are float64 and have the same length.
    """

    threshold: np.ndarray
    tpr: np.ndarray  # = recall
    fpr: np.ndarray
    precision: np.ndarray  # 1 if no pixel is predicted as an anomaly


@dataclass(frozen=True)
class Figures:
    """Figures as fractions; all are None, with the reason in `undefined`, unless both classes occur."""

    images: int
    inliers: int
    """Number of inlier pixels."""
    outliers: int
    """Number of outlier pixels."""
    undefined: str | None = None
    auroc: float | None = None
    ap: float | None = None
    fpr95: float | None = None
    fpr95_definitions: dict[str, float] | None = None
    """FPR95 by each of `FPR95_DEFINITIONS`."""
    best_f1: float | None = None
    best_f1_threshold: float | None = None


@dataclass(frozen=True)
class PooledResult(Figures):
    """Figures over all pixels; `fpr95` follows the default definition, `first_at_least`."""

    fpr95_threshold: float | None = None
    curve: Curve | None = None

    def to_dict(self) -> dict[str, Any]:
        """The figures without the curve, for JSON."""
        return {key: value for key, value in asdict(self).items() if key != "curve"}


class PooledMetrics:
    """Accumulates frames and computes the metrics over all their pixels.

    The states of several processes can be merged, and `state_dict` and `from_state` store a state in a file. A single
    pass over the data is exact. The memory is bounded for any number of frames, because the counts are stored in
    temporary files (see `ScoreCounts`).

    Examples:
        >>> metrics = PooledMetrics()
        >>> metrics.update(np.array([[-9.0, -3.0, -7.0]], np.float32), np.array([[0, 1, 255]]), name="a.png")
        >>> metrics.update(np.array([[-8.0, -2.0, -4.0]], np.float32), np.array([[0, 0, 1]]), name="b.png")
        >>> result = metrics.compute()
        >>> round(result.auroc, 4), round(result.fpr95, 4), result.best_f1_threshold
        (0.6667, 0.3333, -4.0)
    """

    def __init__(self) -> None:
        self.images = 0
        self._counts = ScoreCounts()

    def update(self, score: np.ndarray, target: np.ndarray, *, name: str) -> None:
        """Add a frame.

        Args:
            score: H×W float32; a higher score is more anomalous, and infinite scores are allowed.
            target: H×W, 0 for inliers, 1 for outliers; pixels with other values are void and ignored.
            name: name of the frame, for messages.

        Raises:
            TypeError: the scores are not float32.
            PebalError: the sizes differ, or a score is NaN, even on a void pixel, because it means a broken network.
        """
        check_scores(name, score, target)
        self._counts.add(score[target == 0], score[target == 1])
        self.images += 1

    def merge(self, other: PooledMetrics) -> None:
        """Add the frames of another instance."""
        self._counts.merge(other._counts)
        self.images += other.images

    def state_dict(self) -> dict[str, np.ndarray]:
        """Arrays for `numpy.savez`; for one image they take about 2 bytes per pixel that is not void."""
        return {"images": np.array(self.images), **self._counts.state_dict()}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> PooledMetrics:
        """Restore from the arrays of `state_dict`, for example as read by `numpy.load`."""
        metrics = cls()
        metrics.images = int(state["images"])
        metrics._counts = ScoreCounts.from_state(state)
        return metrics

    def at_least(self, thresholds: np.ndarray) -> np.ndarray:
        """Count the pixels with score ≥ threshold.

        Counts of single frames can be added with any weights, as a bootstrap over images needs.

        Args:
            thresholds: n float32.

        Returns:
            2×n int64, with FP in the first row and TP in the second.
        """
        return self._counts.at_least(thresholds)

    def compute(self) -> PooledResult:
        """Compute the metrics of all frames added so far."""
        inliers, outliers = (int(n) for n in self._counts.page_totals().sum(axis=1))
        if inliers == 0 or outliers == 0:
            missing = " and ".join(
                text for text, n in (("inlier pixel (0)", inliers), ("outlier pixel (1)", outliers)) if n == 0
            )
            where = f"the {inliers + outliers} labelled pixels of {self.images} images"
            return PooledResult(self.images, inliers, outliers, f"not defined: no {missing} among {where}")
        summary = _Summary(inliers, outliers)
        for stretch in self._counts.outlier_scores():
            summary.add(stretch)
        fprs = {
            "first_at_least": summary.fpr_at_least,
            "first_above": summary.fpr_above,
            "nearest": summary.fpr_nearest,
            "bins100": self._fpr_in_bins(inliers, outliers),
        }
        return PooledResult(
            self.images,
            inliers,
            outliers,
            auroc=summary.auroc,
            ap=summary.ap,
            fpr95=fprs["first_at_least"],
            fpr95_threshold=summary.fpr95_threshold,
            fpr95_definitions=fprs,
            best_f1=summary.best_f1,
            best_f1_threshold=summary.best_f1_threshold,
            curve=summary.curve(),
        )

    def _fpr_in_bins(self, inliers: int, outliers: int) -> float:
        """FPR95 by the definition `bins100`, whose thresholds are the lower edges of 100 equal bins."""
        low, high = self._counts.finite_range() or (0.0, 0.0)
        fp, tp = self._counts.at_least(np.linspace(low, high, 101)[99::-1].astype(np.float32))
        fp[-1], tp[-1] = inliers, outliers  # -inf belongs to the lowest bin
        return float(fp[np.argmin(np.abs(tp / outliers - _RECALL))] / inliers)


class _Summary:
    """Accumulates the figures over the distinct outlier scores, from the highest down.

    Between two outlier scores there are only inlier pixels, so FPR rises while TPR is constant. The areas and the best
    F1 therefore depend on the outlier scores only.
    """

    def __init__(self, inliers: int, outliers: int) -> None:
        self._inliers, self._outliers = inliers, outliers
        self.auroc = self.ap = 0.0
        self.best_f1, self.best_f1_threshold = 0.0, np.inf
        self.fpr_at_least = self.fpr_above = self.fpr_nearest = self.fpr95_threshold = np.nan
        self._nearest = np.inf  # |TPR - 0.95| of the nearest so far
        self._nearest_is_last = False
        self._points = [np.array([[np.inf, 0.0, 0.0]])]  # threshold, TP, FP
        self._cell: np.ndarray = np.full((1, 3), -1)

    def add(self, at: OutlierScores) -> None:
        tpr, fpr = at.tp / self._outliers, at.fp / self._inliers
        share = at.outliers / self._outliers
        # The area under the ROC curve is the probability that an outlier scores above an inlier; ties count half.
        # Σ share · (1 - (FPR above the score + FPR from the score on) / 2)
        self.auroc += float(np.sum(share * (1 - (at.fp_above + at.fp) / (2 * self._inliers))))
        # AP = Σ (recall_i - recall_{i-1}) · precision_i
        self.ap += float(np.sum(share * at.tp / (at.tp + at.fp)))
        # F1 = 2 TP / (P + TP + FP); of equal values the highest threshold counts, which raises the fewest alarms.
        f1 = 2 * at.tp / (self._outliers + at.tp + at.fp)
        best = int(np.argmax(f1))
        if f1[best] > self.best_f1:
            self.best_f1, self.best_f1_threshold = float(f1[best]), float(at.score[best])
        self._add_fpr95(at, tpr, fpr)
        self._add_points(at)

    def _add_fpr95(self, at: OutlierScores, tpr: np.ndarray, fpr: np.ndarray) -> None:
        if np.isnan(self.fpr_at_least) and tpr[-1] >= _RECALL:
            first = np.searchsorted(tpr, _RECALL, "left")
            self.fpr_at_least, self.fpr95_threshold = float(fpr[first]), float(at.score[first])
        if np.isnan(self.fpr_above) and tpr[-1] > _RECALL:
            self.fpr_above = float(fpr[np.searchsorted(tpr, _RECALL, "right")])
        # The lowest threshold with the TPR of an outlier score is just above the next outlier score.
        if self._nearest_is_last:
            self.fpr_nearest = float(at.fp_above[0] / self._inliers)
        distance = np.abs(tpr - _RECALL)
        nearest = len(distance) - 1 - int(np.argmin(distance[::-1]))
        self._nearest_is_last = False
        if distance[nearest] <= self._nearest:
            self._nearest = distance[nearest]
            self._nearest_is_last = nearest == len(distance) - 1
            fp = at.fp[nearest] if self._nearest_is_last else at.fp_above[nearest + 1]
            self.fpr_nearest = float(fp / self._inliers)

    def _add_points(self, at: OutlierScores) -> None:
        """Keep the vertices of the ROC curve (just above each score and at it) that enter a new cell.

        A cell covers 1/500 of TPR and of FPR, and 1/50 of a decade of FPR for logarithmic axes.
        """
        with np.errstate(over="ignore"):  # infinity follows the largest number
            above = np.nextafter(at.score, np.float32(np.inf))
        threshold = np.stack([above, at.score], axis=1).ravel()
        tp = np.stack([at.tp - at.outliers, at.tp], axis=1).ravel()
        fp = np.stack([at.fp_above, at.fp], axis=1).ravel()
        fpr = fp / self._inliers
        decades = np.log10(np.maximum(fpr, 0.5 / self._inliers))
        position = np.stack([tp / self._outliers * 500, fpr * 500, decades * 50], axis=1)
        cells = np.concatenate([self._cell, np.floor(position)])
        kept = np.any(cells[1:] != cells[:-1], axis=1)
        self._points.append(np.stack([threshold, tp, fp], axis=1)[kept])
        self._cell = cells[-1:]

    def curve(self) -> Curve:
        end = np.array([[-np.inf, self._outliers, self._inliers]])
        threshold, tp, fp = np.concatenate([*self._points, end]).T
        precision = np.divide(tp, tp + fp, out=np.ones_like(tp), where=tp + fp > 0)
        return Curve(threshold, tp / self._outliers, fp / self._inliers, precision)
