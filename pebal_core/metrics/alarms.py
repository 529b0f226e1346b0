"""Measures false alarms by class, and the recall of outliers by size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

STEP = 0.02
LOWEST, HIGHEST = -80.0, 20.0
BINS = round((HIGHEST - LOWEST) / STEP)
"""Energies in nats are counted in bins of width `STEP`; values outside the range go into the outermost bins."""
FOUND = 0.25
"""An outlier counts as found if at least this share of its pixels is alarmed."""
SIZES = (8, 12, 20, 32)
"""Smallest height in pixels of each group of outliers; the last group has no upper bound."""


class Alarms:
    """Accumulates energies of known pixels by class, and of outliers by height, frame by frame.

    The threshold is the energy that a given share of the known pixels of all frames exceeds.

    Args:
        classes: names of the trainIds 0, 1, …

    Examples:
        >>> alarms = Alarms(["road"])
        >>> energy = np.full((20, 10), -8, np.float32)
        >>> outlier = np.zeros((20, 10), bool)
        >>> outlier[2:14, 3:6], energy[2:14, 3:6] = True, -2
        >>> alarms.update(energy, np.where(outlier, 255, 0), outlier)
        >>> alarms.by_class(-5), alarms.recall(-5)
        ({'road': 0.0}, {'12-19': 1.0})
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.counts = np.zeros((len(self.classes), BINS), np.int64)
        self.objects = np.zeros((0, 2))
        """N×2; height in pixels of each outlier, and the energy that a share `FOUND` of its pixels reaches."""

    def update(self, energy: np.ndarray, labels: np.ndarray, outlier: np.ndarray) -> None:
        """Add a frame.

        Args:
            energy: H×W floats in nats.
            labels: H×W integers, trainIds; pixels with other values are ignored.
            outlier: H×W bool, true on outliers.
        """
        known = labels < len(self.classes)
        # Infinities and overflowing values belong to the outermost bins. NaN, which the pooled metrics refuse, cannot
        # be converted to an integer.
        with np.errstate(over="ignore"):
            steps = np.nan_to_num((energy[known] - LOWEST) / STEP, nan=0.0)
        bins = steps.clip(0, BINS - 1).astype(np.int64)
        flat = labels[known].astype(np.int64) * BINS + bins
        self.counts += np.bincount(flat, minlength=self.counts.size).reshape(self.counts.shape)
        count, regions, stats, _ = cv2.connectedComponentsWithStats(outlier.astype(np.uint8), connectivity=8)
        found = [
            (stats[i, cv2.CC_STAT_HEIGHT], np.quantile(energy[regions == i], 1 - FOUND, method="higher"))
            for i in range(1, count)
        ]
        self.objects = np.concatenate([self.objects, np.array(found).reshape(-1, 2)])

    def threshold(self, share: float) -> float:
        """Energy in nats that this share of the known pixels exceeds, to a precision of `STEP`; NaN without pixels."""
        total = self.counts.sum(0)
        if not total.sum():
            return float("nan")
        above = total[::-1].cumsum()[::-1]  # in this bin or above
        return LOWEST + STEP * int(np.count_nonzero(above > share * total.sum()))

    def by_class(self, threshold: float) -> dict[str, float]:
        """Share of each class's pixels above the threshold (in nats), for the classes that occur."""
        first = int(np.clip(round((threshold - LOWEST) / STEP), 0, BINS))
        totals = self.counts.sum(1)
        return {
            name: float(self.counts[i, first:].sum() / totals[i]) for i, name in enumerate(self.classes) if totals[i]
        }

    def recall(self, threshold: float) -> dict[str, float]:
        """Share of outliers that are found at a threshold in nats, by height in pixels, for the heights that occur."""
        found = {}
        for low, high in zip(SIZES, (*SIZES[1:], np.inf), strict=True):
            here = self.objects[(self.objects[:, 0] >= low) & (self.objects[:, 0] < high), 1]
            if here.size:
                found[f"{low}-{high - 1}" if np.isfinite(high) else f"{low}+"] = float((here > threshold).mean())
        return found

    def merge(self, other: Alarms) -> None:
        """Add the frames of another instance."""
        self.counts += other.counts
        self.objects = np.concatenate([self.objects, other.objects])

    def state_dict(self) -> dict[str, np.ndarray]:
        """Arrays for `numpy.savez`."""
        return {"classes": np.array(self.classes), "counts": self.counts, "objects": self.objects}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Alarms:
        """Restore from the arrays of `state_dict`, for example as read by `numpy.load`."""
        alarms = cls([str(name) for name in state["classes"]])
        alarms.counts, alarms.objects = state["counts"].copy(), state["objects"].copy()
        return alarms
