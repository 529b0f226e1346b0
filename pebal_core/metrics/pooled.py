"""Pixel metrics of anomaly detection over all pixels of a data set pooled: AUROC, AP, FPR95, best F1, curves.

A pixel is called an anomaly if its score is at least a threshold t. With P outlier and N inlier pixels,

    TP(t), FP(t)  outlier, inlier pixels with score ≥ t
    recall = TPR = TP / P        FPR = FP / N        precision = TP / (TP + FP)

Every figure is exact: it equals scikit-learn's on the concatenated pixels (`roc_auc_score`,
`average_precision_score`, `roc_curve` with `drop_intermediate=False`), ties and infinite scores included.
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
"""The definitions of the false positive rate at 95 % true positive rate that are in use."""

_RECALL = 0.95


@dataclass(frozen=True)
class Curve:
    """Operating points from the highest threshold down, thinned out for plotting; float64, one length."""

    threshold: np.ndarray
    tpr: np.ndarray  # = recall
    fpr: np.ndarray
    precision: np.ndarray  # 1 where nothing is called an anomaly


@dataclass(frozen=True)
class Figures:
    """Fractions; all None, with the reason in `undefined`, unless both classes occur."""

    images: int
    inliers: int
    outliers: int
    """Pixels."""
    undefined: str | None = None
    auroc: float | None = None
    ap: float | None = None
    fpr95: float | None = None
    fpr95_definitions: dict[str, float] | None = None
    """By each of `FPR95_DEFINITIONS`."""
    best_f1: float | None = None
    best_f1_threshold: float | None = None


@dataclass(frozen=True)
class PooledResult(Figures):
    """Figures of all pixels together; `fpr95` is that of the default definition, `first_at_least`."""

    fpr95_threshold: float | None = None
    curve: Curve | None = None

    def to_dict(self) -> dict[str, Any]:
        """The figures without the curve, for JSON."""
        return {key: value for key, value in asdict(self).items() if key != "curve"}


class PooledMetrics:
    """Accumulates frames and yields the metrics of all their pixels together.

    States add up: `merge` joins those of several processes, `state_dict` and `from_state` carry one through
    a file. One pass is exact. Memory is bounded whatever the number of frames; the counts lie in temporary
    files (see `ScoreCounts`).

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
            score: H×W float32, the higher the more anomalous; may be infinite.
            target: H×W, 0 = inlier, 1 = outlier, anything else = void (left out).
            name: of the frame, for messages.

        Raises:
            PebalError: the sizes differ, or a score is NaN, be it void: a network that yields NaN is broken.
        """
        check_scores(name, score, target)
        self._counts.add(score[target == 0], score[target == 1])
        self.images += 1

    def merge(self, other: PooledMetrics) -> None:
        """Add the frames of another."""
        self._counts.merge(other._counts)
        self.images += other.images

    def state_dict(self) -> dict[str, np.ndarray]:
        """Arrays for `numpy.savez`: about 2 bytes for each pixel of one image that is not void."""
        return {"images": np.array(self.images), **self._counts.state_dict()}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> PooledMetrics:
        """What `state_dict` returned, as read back by `numpy.load`."""
        metrics = cls()
        metrics.images = int(state["images"])
        metrics._counts = ScoreCounts.from_state(state)
        return metrics

    def at_least(self, thresholds: np.ndarray) -> np.ndarray:
        """Numbers of pixels with score ≥ threshold, n float32 thresholds → 2×n int64: FP and TP.

        Taken of single frames, these add up under any weights: what a bootstrap over images needs.
        """
        return self._counts.at_least(thresholds)

    def compute(self) -> PooledResult:
        """The metrics of all frames so far."""
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
        """FPR95 of scores known by their bin only: the thresholds are the lower edges of 100 equal bins."""
        low, high = self._counts.finite_range() or (0.0, 0.0)
        fp, tp = self._counts.at_least(np.linspace(low, high, 101)[99::-1].astype(np.float32))
        fp[-1], tp[-1] = inliers, outliers  # -inf belongs to the lowest bin
        return float(fp[np.argmin(np.abs(tp / outliers - _RECALL))] / inliers)


class _Summary:
    """Takes in the distinct outlier scores from the highest down.

    Between two of them only inlier pixels lie: FPR rises and TPR stays, so that the areas and the best F1 are
    decided at the outlier scores alone.
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
        # Area under ROC = probability that an outlier scores above an inlier, ties counting half:
        # Σ share · (1 - (FPR above the score + FPR from the score on) / 2)
        self.auroc += float(np.sum(share * (1 - (at.fp_above + at.fp) / (2 * self._inliers))))
        # AP = Σ (recall_i - recall_{i-1}) · precision_i
        self.ap += float(np.sum(share * at.tp / (at.tp + at.fp)))
        # F1 = 2 TP / (P + TP + FP); of equal ones the highest threshold: the fewest alarms
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
        # The lowest threshold with the TPR of an outlier score lies just above the next outlier score.
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
        """Keep the vertices of the ROC curve (just above each score, and at it) that enter a new cell.

        Cells are 1/500 of TPR by 1/500 of FPR, and 1/50 of a decade of FPR for logarithmic axes.
        """
        threshold = np.stack([np.nextafter(at.score, np.float32(np.inf)), at.score], axis=1).ravel()
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
