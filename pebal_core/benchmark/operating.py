"""Counts found and false objects of a set, with pixels alone and after the object rules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..metrics.objects import RATES, SIZES, ObjectMetrics, StoredResult
from ..objects import ObjectRules, find_objects
from .bootstrap import central
from .results import ClassAlarms, Components, Froc, Objects, SizeRecall, Stored

Record = dict[str, np.ndarray]

PLAIN, RULES = "objects.", "rules."
"""Prefixes of the arrays in an image's record: counted with pixels alone, and after the object rules."""


@dataclass(frozen=True)
class OperatingPoint:
    """How the objects of a set are counted.

    Examples:
        >>> score, target = np.full((40, 40), -9, np.float32), np.zeros((40, 40), np.uint8)
        >>> target[:20, :20] = 1
        >>> score[:20, :10] = -3
        >>> point = OperatingPoint(("road",), rules=None, outliers=True)
        >>> record = point.record(PLAIN, score, target, np.zeros_like(target), "a.png")
        >>> figures = point.figures([record], np.ones((3, 1)), None)
        >>> figures.labelled, figures.froc.score
        (1, 1.0)
    """

    class_names: tuple[str, ...]
    rules: ObjectRules | None
    """They hold the stored threshold; None where no threshold is stored, and then only pixels alone are counted."""
    outliers: bool
    """Whether outliers are labelled; without them there is no curve."""

    def record(
        self,
        prefix: str,
        score: np.ndarray,
        target: np.ndarray,
        known: np.ndarray,
        name: str,
        stored: np.ndarray | None = None,
    ) -> Record:
        """Count the objects of an image.

        Args:
            prefix: `PLAIN` for pixels alone, `RULES` for after the object rules.
            score, target, stored, name: as of `ObjectMetrics.update`.
            known: H×W, the known class to which a false alarm is assigned.
        """
        metrics = self._new(prefix)
        metrics.update(score, target, known, stored=stored, name=name)
        return {f"{prefix}{key}": value for key, value in metrics.state_dict().items()}

    def figures(self, records: Iterable[Record], weights: np.ndarray, components: Components | None) -> Objects:
        """Reduce the records of all images to figures with bootstrap intervals.

        Args:
            weights: from `draw_weights`.
            components: component metrics of the filtered scores.
        """
        plain, rules = self._new(PLAIN), self._new(RULES)
        for record in records:
            for prefix, total in ((PLAIN, plain), (RULES, rules)):
                part = {key.removeprefix(prefix): value for key, value in record.items() if key.startswith(prefix)}
                if part:
                    total.merge(ObjectMetrics.from_state(part))
        after = None if self.rules is None else self._objects(rules, weights, components, None)
        return self._objects(plain, weights, None, after)

    def _new(self, prefix: str) -> ObjectMetrics:
        lowest = -np.inf if prefix == PLAIN or self.rules is None else self.rules.sweep_from
        threshold = None if self.rules is None else self.rules.threshold
        return ObjectMetrics(len(self.class_names), threshold, lowest if self.outliers else None)

    def _objects(
        self, metrics: ObjectMetrics, weights: np.ndarray, components: Components | None, rules: Objects | None
    ) -> Objects:
        result = metrics.compute()
        replicates = metrics.replicates(weights)[1:]
        names = [f"{rate:g}" for rate in RATES]
        recall = result.recall_at or [None] * len(RATES)
        intervals = [central(column, 0, np.inf) for column in replicates.T]
        at_rates, (score, found, false) = intervals[: len(RATES)], intervals[len(RATES) :]
        points = (
            ([], [], [])
            if result.curve is None
            else (result.curve.threshold.tolist(), result.curve.false_per_frame.tolist(), result.curve.recall.tolist())
        )
        stored = None
        if result.stored is not None:
            at = result.stored
            stored = Stored(
                metrics.settings[1], at.recall, found, at.false_per_frame, false, _by_size(at), self._by_class(at)
            )
        return Objects(
            labelled=result.objects,
            froc=Froc(result.score, score, *points),
            recall_at=dict(zip(names, recall)),
            recall_at_interval=dict(zip(names, at_rates)),
            stored=stored,
            components=components,
            rules=rules,
        )

    def _by_class(self, stored: StoredResult) -> dict[str, ClassAlarms]:
        alarms = map(ClassAlarms, stored.class_pixels, stored.class_objects)
        return {name: one for name, one in zip(self.class_names, alarms) if one.pixels is not None}


def _by_size(stored: StoredResult) -> list[SizeRecall]:
    groups = zip(SIZES, [*SIZES[1:], None], stored.size_objects, stored.size_recall)
    return [SizeRecall(*group) for group in groups]


def reported_pixels(score: np.ndarray, labels: np.ndarray, rules: ObjectRules) -> np.ndarray:
    """The pixels of the objects that the rules report, H×W bool.

    Args:
        labels: H×W predicted classes, in which the rules look for the ground.

    Examples:
        >>> score, road = np.full((60, 80), -10, np.float32), np.zeros((60, 80), np.uint8)
        >>> score[30:45, 20:40] = score[:15, 70:75] = -2  # on a road, and on a building
        >>> road[:20, 60:] = 2
        >>> int(reported_pixels(score, road, ObjectRules(threshold=-4, grow=-5)).sum())
        300
    """
    reported = np.zeros(score.shape, bool)
    for found in find_objects(score, labels, rules).objects:
        x, y, width, height = found.box
        reported[y : y + height, x : x + width] |= found.mask
    return reported
