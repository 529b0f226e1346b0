"""Component metrics of SegmentMeIfYouCan (Chan et al., NeurIPS 2021, section 4.2), which evaluate individual objects.

Let k be an 8-connected component of the outlier pixels, and k' an 8-connected component of the pixels whose score
reaches a threshold. Let K'(k) be the union of all k' that touch k, and A(k) the pixels of K'(k) that belong to outlier
components other than k. Then

    sIoU(k) = |k ∩ K'(k)| / |(k ∪ K'(k)) without A(k)|
    PPV(k') = |k' ∩ all outlier pixels| / |k'|
    TP(τ), FN(τ) = number of k with sIoU ≥ τ, < τ               FP(τ) = number of k' with PPV < τ
    F1(τ)   = 2 TP / (2 TP + FN + FP)                           averaged over τ = 0.25, 0.30, … 0.75

Because A(k) is excluded, one prediction that covers two objects lowers the sIoU of neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from pebal_core.metrics.checks import check_scores

TAUS = np.linspace(0.25, 0.75, 11)

SIZE_LIMITS: dict[str, tuple[int, int]] = {"anomaly": (500, 100), "obstacle": (50, 10)}
"""The benchmark's limits in pixels for each track, which are the smallest prediction and the smallest object."""


@dataclass(frozen=True)
class ComponentResult:
    """Figures as fractions; all are None, with the reason in `undefined`, if there is no object to find."""

    images: int
    objects: int
    predictions: int
    undefined: str | None = None
    siou: float | None = None
    """Mean over objects."""
    ppv: float | None = None
    """Mean over predictions; also None if nothing was predicted."""
    f1: float | None = None
    """Mean over `TAUS`."""
    f1_at_taus: tuple[float, ...] | None = None
    """F1 at each of `TAUS`."""


class ComponentMetrics:
    """Accumulates component metrics frame by frame.

    The threshold is usually the one with the best pixel-wise F1 on the same set.

    Args:
        threshold: a pixel is predicted as an anomaly if its score is at least this.
        smallest_prediction: predicted components with fewer pixels are dropped.
        smallest_object: objects with fewer pixels become void.

    Examples:
        >>> metrics = ComponentMetrics(threshold=0.5, smallest_prediction=1, smallest_object=1)
        >>> target, score = np.zeros((2, 20, 20), np.float32)
        >>> target[:10, :10] = score[:10, :5] = 1
        >>> metrics.update(score, target.astype(np.uint8), name='frame 1')
        >>> result = metrics.compute()
        >>> result.objects, result.siou, result.ppv
        (1, 0.5, 1.0)
    """

    def __init__(self, threshold: float, smallest_prediction: int = 500, smallest_object: int = 100) -> None:
        self.settings = (float(threshold), int(smallest_prediction), int(smallest_object))
        self.images = self.objects = self.predictions = 0
        self._siou_sum = self._ppv_sum = 0.0
        self._tp = np.zeros(len(TAUS), np.int64)
        self._fp = np.zeros(len(TAUS), np.int64)

    def update(self, score: np.ndarray, target: np.ndarray, *, name: str) -> None:
        """Add a frame; arguments and errors are those of `PooledMetrics.update`."""
        check_scores(name, score, target)
        siou, ppv = self._match(score, target)
        self.images += 1
        self.objects += len(siou)
        self.predictions += len(ppv)
        self._siou_sum += float(siou.sum())
        self._ppv_sum += float(ppv.sum())
        self._tp += np.sum(siou >= TAUS[:, None], axis=1)
        self._fp += np.sum(ppv < TAUS[:, None], axis=1)

    def merge(self, other: ComponentMetrics) -> None:
        """Add the frames of another instance with the same threshold and limits."""
        if other.settings != self.settings:
            raise ValueError(f"cannot merge component metrics of {other.settings} into those of {self.settings}")
        self.images += other.images
        self.objects += other.objects
        self.predictions += other.predictions
        self._siou_sum += other._siou_sum
        self._ppv_sum += other._ppv_sum
        self._tp += other._tp
        self._fp += other._fp

    def state_dict(self) -> dict[str, np.ndarray]:
        """Arrays for `numpy.savez`."""
        return {
            "settings": np.array(self.settings),
            "counts": np.array([self.images, self.objects, self.predictions]),
            "sums": np.array([self._siou_sum, self._ppv_sum]),
            "tp": self._tp,
            "fp": self._fp,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> ComponentMetrics:
        """Restore from the arrays of `state_dict`, for example as read by `numpy.load`."""
        threshold, smallest_prediction, smallest_object = state["settings"].tolist()
        metrics = cls(threshold, smallest_prediction, smallest_object)
        metrics.images, metrics.objects, metrics.predictions = state["counts"].tolist()
        metrics._siou_sum, metrics._ppv_sum = state["sums"].tolist()
        metrics._tp, metrics._fp = state["tp"].copy(), state["fp"].copy()
        return metrics

    def compute(self) -> ComponentResult:
        """Compute the metrics of all frames added so far."""
        if self.objects == 0:
            reason = f"not defined: no object of at least {self.settings[2]} pixels in {self.images} images"
            return ComponentResult(self.images, 0, self.predictions, reason)
        f1 = 2 * self._tp / (self._tp + self.objects + self._fp)  # TP + FN = objects
        return ComponentResult(
            self.images,
            self.objects,
            self.predictions,
            siou=self._siou_sum / self.objects,
            ppv=self._ppv_sum / self.predictions if self.predictions else None,
            f1=float(f1.mean()),
            f1_at_taus=tuple(f1.tolist()),
        )

    def _match(self, score: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """sIoU of every object and PPV of every prediction of a frame."""
        threshold, smallest_prediction, smallest_object = self.settings
        labelled = (target == 0) | (target == 1)
        objects = _components(target == 1)
        # Void is removed before components are labelled, so it can split a prediction.
        predictions = _components((score >= np.float32(threshold)) & labelled)
        predictions[np.bincount(predictions.ravel())[predictions] < smallest_prediction] = 0
        small = (objects > 0) & (np.bincount(objects.ravel())[objects] < smallest_object)
        objects[small] = predictions[small] = 0

        object_size = np.bincount(objects.ravel())
        prediction_size = np.bincount(predictions.ravel())
        both = (objects > 0) & (predictions > 0)
        pairs, overlap = np.unique(
            objects[both].astype(np.int64) * len(prediction_size) + predictions[both], return_counts=True
        )
        of_object, of_prediction = np.divmod(pairs, len(prediction_size))
        on_objects = np.bincount(of_prediction, overlap, len(prediction_size))
        intersection = np.bincount(of_object, overlap, len(object_size))
        # Pixels of each touching prediction that are not on other objects, which is its size - on_objects + overlap.
        reach = (prediction_size - on_objects)[of_prediction] + overlap
        union = object_size + np.bincount(of_object, reach, len(object_size)) - intersection

        objects_left, predictions_left = object_size > 0, prediction_size > 0
        objects_left[0] = predictions_left[0] = False  # the background
        siou = intersection[objects_left] / union[objects_left]
        return siou, on_objects[predictions_left] / prediction_size[predictions_left]


def _components(mask: np.ndarray) -> np.ndarray:
    """H×W int32, the number of each pixel's 8-connected component; 0 outside the mask."""
    return np.asarray(cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[1])
