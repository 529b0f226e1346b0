"""Computes the figures of a validation epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..errors import PebalError
from ..labels import OUTLIER, VOID
from ..metrics.alarms import Alarms
from ..metrics.pooled import PooledMetrics
from ..metrics.segmentation import SegmentationMetrics


@dataclass(frozen=True)
class Evaluation:
    """Metrics to which the scenes of one validation epoch are added.

    Examples:
        >>> evaluation = Evaluation.of(["road", "car"])
        >>> labels, predicted = np.array([[0, 1, 1, OUTLIER]], np.uint8), np.array([[0, 0, 1, 1]], np.uint8)
        >>> evaluation.add(np.array([[-9, -9, -9, -2]], np.float32), predicted, labels, "0.jpg")
        >>> figures = evaluation.figures("hall")
        >>> figures["val_ap"], round(figures["val_accuracy"], 3)
        (1.0, 0.667)
    """

    pooled: PooledMetrics
    labels: SegmentationMetrics
    alarms: Alarms
    far: Alarms
    far_pooled: PooledMetrics

    @classmethod
    def of(cls, names: Sequence[str]) -> Evaluation:
        """Empty metrics for these classes."""
        return cls(PooledMetrics(), SegmentationMetrics(names), Alarms(names), Alarms(names), PooledMetrics())

    def add(self, energy: np.ndarray, predicted: np.ndarray, labels: np.ndarray, name: str) -> None:
        """Add a scene: energy in nats, predicted and true labels, H×W each."""
        known = labels < len(self.labels.classes)
        self.pooled.update(energy, _target(labels), name=name)
        self.labels.update(predicted, np.where(known, labels, VOID), name=name)
        self.alarms.update(energy, labels, labels == OUTLIER)

    def add_far(self, energy: np.ndarray, labels: np.ndarray, name: str) -> None:
        """Add a scene with small outliers far away."""
        self.far_pooled.update(energy, _target(labels), name=name)
        self.far.update(energy, labels, labels == OUTLIER)

    def joined(self, joint: Callable[[Any], Any]) -> Evaluation:
        """The metrics of all ranks together; `joint` merges one metric over the ranks."""
        return Evaluation(*(joint(getattr(self, item.name)) for item in fields(self)))

    def figures(self, name: str) -> dict[str, float]:
        """Compute val_ap, val_fpr95, val_auroc, val_miou and val_accuracy as fractions.

        Args:
            name: of the validation set, for messages.

        Raises:
            PebalError: the scenes have no outlier pixels, or no others.
        """
        result, miou, accuracy = self.pooled.compute(), self.labels.labelled_miou(), self.labels.compute().accuracy
        if result.undefined is not None:
            raise PebalError(f"The validation set {name} cannot be evaluated: {result.undefined}.")
        assert result.ap is not None and result.fpr95 is not None and result.auroc is not None
        return {
            "val_ap": result.ap,
            "val_fpr95": result.fpr95,
            "val_auroc": result.auroc,
            "val_miou": float("nan") if miou is None else miou,
            "val_accuracy": float("nan") if accuracy is None else accuracy,
        }

    def detail(self, target_fpr: float) -> dict[str, float]:
        """Compute false alarms by class, and the figures of small outliers far away.

        Args:
            target_fpr: share of the known pixels that alarm at the threshold.
        """
        by_class = self.alarms.by_class(self.alarms.threshold(target_fpr))
        detail = {f"alarms/{name}": share for name, share in by_class.items()}
        result = self.far_pooled.compute()
        if result.ap is not None and result.fpr95 is not None:
            recall = self.far.recall(self.far.threshold(target_fpr))
            detail |= {"far/ap": result.ap, "far/fpr95": result.fpr95}
            detail |= {f"far/recall_{size}": share for size, share in recall.items()}
        return detail


def _target(labels: np.ndarray) -> np.ndarray:
    """H×W: 1 on outliers, void on void, 0 on all other pixels."""
    return np.where(labels == OUTLIER, 1, np.where(labels == VOID, VOID, 0))
