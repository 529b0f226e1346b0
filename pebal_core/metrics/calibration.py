"""Expected calibration error, the mean gap between a prediction's confidence and its accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pebal_core.errors import PebalError
from pebal_core.labels import VOID
from pebal_core.metrics.checks import check_sizes


@dataclass(frozen=True)
class CalibrationResult:
    """The error over all labelled pixels of all images; the tuples have one entry per bin, None for an empty bin."""

    images: int
    pixels: int
    ece: float | None
    """Expected calibration error as a fraction; None if there is no labelled pixel."""
    bin_pixels: tuple[int, ...]
    bin_confidence: tuple[float | None, ...]
    bin_accuracy: tuple[float | None, ...]


class CalibrationMetrics:
    """Accumulates the expected calibration error (Guo et al., ICML 2017, eq. 5).

    Pixels are sorted by confidence into M bins of equal width, ((m-1)/M, m/M]; the first bin includes 0:

        ECE = Σ_m (n_m / N) · |accuracy_m - mean confidence_m|

    Examples:
        >>> metrics = CalibrationMetrics()
        >>> metrics.update(np.array([[0.9, 0.9]]), np.array([[3, 3]]), np.array([[3, 5]]), name='frame 1')
        >>> round(metrics.compute().ece, 2)  # a confidence of 90 %, but an accuracy of 50 %
        0.4
    """

    def __init__(self, bins: int = 15) -> None:
        self.images = 0
        self._sums = np.zeros((3, bins))  # pixels, confidence, correct pixels; float64 counts to 2^53 exactly

    def update(self, confidence: np.ndarray, labels: np.ndarray, target: np.ndarray, *, name: str) -> None:
        """Add a frame.

        Args:
            confidence: H×W floats in 0…1, the probability of the predicted class.
            labels: H×W integers, predicted trainIds.
            target: H×W integers, trainIds or 255 for void (left out).
            name: name of the frame, for messages.

        Raises:
            PebalError: the sizes differ, or a confidence is not between 0 and 1.
        """
        check_sizes(name, "confidences", confidence, target)
        check_sizes(name, "predicted labels", labels, target)
        known = target != VOID
        confidence, correct = confidence[known].astype(np.float64), (labels == target)[known]
        wrong = ~((confidence >= 0) & (confidence <= 1))  # also true of NaN
        if wrong.any():
            raise PebalError(f"{name}: {np.count_nonzero(wrong)} confidences are not between 0 and 1.")
        bins = self._sums.shape[1]
        index = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
        self._sums += [np.bincount(index, weights, bins) for weights in (None, confidence, correct)]
        self.images += 1

    def merge(self, other: CalibrationMetrics) -> None:
        """Add the frames of another instance with the same number of bins."""
        self._sums += other._sums
        self.images += other.images

    def state_dict(self) -> dict[str, np.ndarray]:
        """Arrays for `numpy.savez`."""
        return {"images": np.array(self.images), "sums": self._sums}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> CalibrationMetrics:
        """Restore from the arrays of `state_dict`, for example as read by `numpy.load`."""
        metrics = cls(state["sums"].shape[1])
        metrics.images = int(state["images"])
        metrics._sums = state["sums"].copy()
        return metrics

    def compute(self) -> CalibrationResult:
        """Compute the metrics of all frames added so far."""
        pixels, confidence, correct = self._sums
        total = float(pixels.sum())
        return CalibrationResult(
            images=self.images,
            pixels=int(total),
            ece=float(np.abs(correct - confidence).sum() / total) if total else None,
            bin_pixels=tuple(int(n) for n in pixels),
            bin_confidence=tuple(float(c / n) if n else None for c, n in zip(confidence, pixels)),
            bin_accuracy=tuple(float(c / n) if n else None for c, n in zip(correct, pixels)),
        )
