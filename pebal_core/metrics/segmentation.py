"""Intersection over union of the inlier classes, from a confusion matrix that is accumulated frame by frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pebal_core.errors import PebalError
from pebal_core.labels import VOID
from pebal_core.metrics.checks import check_sizes


@dataclass(frozen=True)
class SegmentationResult:
    """Figures as fractions, over all labelled pixels of all images."""

    images: int
    pixels: int
    classes: tuple[str, ...]
    iou: tuple[float | None, ...]
    """IoU of each class; None for a class that is neither labelled nor predicted anywhere."""
    miou: float | None
    """Mean over the classes with an IoU; None if there is no labelled pixel."""
    accuracy: float | None
    """Share of labelled pixels with the correct class."""

    def miou_of(self, class_ids: Sequence[int]) -> float | None:
        """Mean over those given classes that have an IoU, for sets that label only some classes."""
        present = [iou for i in class_ids if (iou := self.iou[i]) is not None]
        return sum(present) / len(present) if present else None


class SegmentationMetrics:
    """Accumulates the confusion matrix C, C[t, l] = number of pixels of class t that are labelled l.

        IoU_k = C[k, k] / (Σ_l C[k, l] + Σ_t C[t, k] - C[k, k])

    Void pixels (255 in the target) are ignored.

    Args:
        classes: names of the trainIds 0, 1, …

    Examples:
        >>> metrics = SegmentationMetrics(['road', 'car'])
        >>> metrics.update(np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 255]]), name='frame 1')
        >>> result = metrics.compute()
        >>> result.iou, result.miou, round(result.accuracy, 3)
        ((0.5, 0.5), 0.5, 0.667)
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.images = 0
        self.confusion = np.zeros((len(self.classes),) * 2, np.int64)

    def update(self, labels: np.ndarray, target: np.ndarray, *, name: str) -> None:
        """Add a frame.

        Args:
            labels: H×W integers, predicted trainIds.
            target: H×W integers, trainIds or 255 for void.
            name: name of the frame, for messages.

        Raises:
            PebalError: the sizes differ, or a value is neither a class nor void.
        """
        check_sizes(name, "predicted labels", labels, target)
        known = target != VOID
        for what, values in (("label image", target[known]), ("prediction", labels[known])):
            self._refuse_unknown(values, f"{name}: the {what}")
        k = len(self.classes)
        pairs = target[known].astype(np.int64) * k + labels[known]
        self.confusion += np.bincount(pairs, minlength=k * k).reshape(k, k)
        self.images += 1

    def merge(self, other: SegmentationMetrics) -> None:
        """Add the frames of another instance with the same classes."""
        if other.classes != self.classes:
            raise ValueError(f"cannot merge metrics of the classes {other.classes} into those of {self.classes}")
        self.confusion += other.confusion
        self.images += other.images

    def state_dict(self) -> dict[str, np.ndarray]:
        """Arrays for `numpy.savez`."""
        return {
            "images": np.array(self.images),
            "classes": np.array(self.classes, str),
            "confusion": self.confusion,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> SegmentationMetrics:
        """Restore from the arrays of `state_dict`, for example as read by `numpy.load`."""
        metrics = cls(state["classes"].tolist())
        metrics.images = int(state["images"])
        metrics.confusion = state["confusion"].copy()
        return metrics

    def compute(self) -> SegmentationResult:
        """Compute the metrics of all frames added so far."""
        right = np.diagonal(self.confusion)
        union = self.confusion.sum(axis=0) + self.confusion.sum(axis=1) - right
        iou = tuple(float(r / u) if u else None for r, u in zip(right, union, strict=True))
        present = [value for value in iou if value is not None]
        pixels = int(self.confusion.sum())
        return SegmentationResult(
            images=self.images,
            pixels=pixels,
            classes=self.classes,
            iou=iou,
            miou=sum(present) / len(present) if present else None,
            accuracy=float(right.sum() / pixels) if pixels else None,
        )

    def labelled_classes(self) -> list[int]:
        """Numbers of the classes that occur in the targets added so far."""
        return np.flatnonzero(self.confusion.sum(axis=1)).tolist()

    def labelled_miou(self) -> float | None:
        """Mean IoU over the labelled classes only, for sets that label only some of a network's classes."""
        return self.compute().miou_of(self.labelled_classes())

    def group_iou(self, groups: Mapping[str, Sequence[int]]) -> dict[str, float | None]:
        """IoU of groups of classes, each treated as a single class; None for a group that occurs nowhere.

        >>> metrics = SegmentationMetrics(["car", "bus", "road"])
        >>> metrics.update(np.array([[1, 2]]), np.array([[0, 2]]), name="a bus for a car")
        >>> metrics.group_iou({"vehicle": (0, 1)})
        {'vehicle': 1.0}
        """
        ious: dict[str, float | None] = {}
        for group, members in groups.items():
            rows, columns = self.confusion[list(members)], self.confusion[:, list(members)]
            right = rows[:, list(members)].sum()
            union = rows.sum() + columns.sum() - right
            ious[group] = float(right / union) if union else None
        return ious

    def _refuse_unknown(self, values: np.ndarray, where: str) -> None:
        unknown = values[(values < 0) | (values >= len(self.classes))]
        if len(unknown):
            listed = ", ".join(map(str, sorted(set(unknown.tolist()))[:5]))
            raise PebalError(
                f"{where} has {len(unknown)} pixels with the values {listed}; the classes are "
                f"0 to {len(self.classes) - 1}, void is {VOID}."
            )
