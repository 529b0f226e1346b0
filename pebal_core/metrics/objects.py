"""Objects found and false objects per frame, at every threshold and at a stored one.

    labelled object   8-connected component of at least 50 outlier pixels
    reported object   8-connected component of at least 100 reported pixels, from which void is taken off first
    found             a labelled object of which reported objects cover at least 25 %
    false             a reported object of which less than 25 % are outlier pixels

A threshold t reports the pixels with score ≥ t. The curve of recall = found / labelled over false objects per frame,
all images pooled, is the free-response ROC (FROC) curve; its score is the mean, over `RATES`, of the best recall at or
below that rate of false objects (as in LUNA16: Setio et al., Medical Image Analysis 2017).

The sweep is per image. Each image is cut at about a hundred of its own scores, chosen so that each reports a tenth
more pixels than the one before, from 100 pixels to the whole image; at a threshold in between, the image counts as at
the next higher of them. An image with at most `LEVELS` distinct scores is cut at each of them, which is exact.
Thresholds that report more than a tenth of all inlier pixels are left out: at the lowest ones everything merges into
one object, which would be a single false object that covers all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from pebal_core.metrics.checks import check_scores, check_sizes

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False objects per frame at which the FROC score reads the recall."""

SMALLEST_OBJECT, SMALLEST_REPORT = 50, 100
"""Pixels at the size of the labels."""

SIZES = (50, 200, 1000, 5000)
"""Lower ends in pixels of the groups of labelled objects whose recall is told apart."""

LEVELS = 128
MOST_REPORTED = 0.1
_STEP = 1.1
_BAND = 128  # rows that are counted at once
_SHARE_PARTS = 4  # the least share, a quarter, of an object that is covered and of a report that is outliers
_BATCH = 500_000  # events times replicates that are summed at once


@dataclass(frozen=True)
class ObjectCurve:
    """Operating points at which recall rises, by false objects per frame from the lowest; float64, one length."""

    threshold: np.ndarray
    false_per_frame: np.ndarray
    recall: np.ndarray


@dataclass(frozen=True)
class StoredResult:
    """What is reported at the stored threshold."""

    recall: float | None
    """None without a labelled object."""
    false_per_frame: float
    size_objects: tuple[int, ...]
    """Labelled objects in each group of `SIZES`."""
    size_recall: tuple[float | None, ...]
    class_pixels: tuple[float | None, ...]
    """Share of each class's inlier pixels that is reported; None for a class without one."""
    class_objects: tuple[float, ...]
    """False objects per frame by the class of most of their inlier pixels."""


@dataclass(frozen=True)
class ObjectResult:
    """Figures as fractions; None, with the reason in `undefined`, where there is no object to find."""

    images: int
    objects: int
    undefined: str | None = None
    score: float | None = None
    """Mean of `recall_at`."""
    recall_at: tuple[float, ...] | None = None
    """At each of `RATES`."""
    curve: ObjectCurve | None = None
    stored: StoredResult | None = None
    """None where no threshold is stored."""


class ObjectMetrics:
    """Accumulates labelled and reported objects frame by frame.

    The state has some hundred numbers for each image, so that the images can be weighted for a bootstrap.

    Examples:
        >>> target, score = np.zeros((2, 40, 40), np.float32)
        >>> target[:20, :20] = score[:20, :10] = score[35:, 20:] = 1
        >>> score[35:, 20:] = 2
        >>> metrics = ObjectMetrics(classes=1, threshold=1.0)
        >>> metrics.update(score, target.astype(np.uint8), np.zeros((40, 40), np.uint8), name="a.png")
        >>> result = metrics.compute()
        >>> result.recall_at, result.stored.recall, result.stored.false_per_frame
        ((0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0), 1.0, 1.0)
    """

    def __init__(self, classes: int, threshold: float | None = None, floor: float | None = -np.inf) -> None:
        """Args:

        classes: number of known classes.
        threshold: the stored one; None: only the curve is made.
        floor: no threshold below this is swept; None: none is, on a set without outliers.
        """
        self.settings = (classes, *(np.nan if value is None else float(value) for value in (threshold, floor)))
        self.images = 0
        number, score = np.zeros(0, np.int64), np.zeros(0, np.float32)
        self._parts: dict[str, list[np.ndarray]] = {
            "inliers": [number],  # pixels of each image
            "levels": [number],  # number of levels of each image
            "threshold": [score],  # of each level
            "false": [number],  # objects at each level
            "reported": [number],  # inlier pixels at each level
            "objects": [number],  # number of labelled objects of each image
            "size": [number],  # pixels of each labelled object
            "found": [score],  # the highest level at which each is found, else NaN
            "stored_found": [number],  # 0 or 1 of each labelled object
            "stored_false": [number],  # objects of each image
            "stored_classes": [np.zeros((0, 3, classes), np.int64)],  # of each image, see `_by_class`
        }

    def update(
        self,
        score: np.ndarray,
        target: np.ndarray,
        labels: np.ndarray,
        *,
        name: str,
        stored: np.ndarray | None = None,
    ) -> None:
        """Add a frame.

        Args:
            score: H×W floats, higher where more anomalous.
            target: H×W uint8, 1 anomaly, 0 not, 255 void.
            name: of the frame, for messages.
            labels: H×W integers, the known class of each pixel, labelled or predicted; other values: none.
            stored: H×W bool, the pixels that are reported at the stored threshold; None: those that reach it.

        Raises:
            PebalError: the sizes differ, or a score is NaN.
        """
        check_scores(name, score, target)
        check_sizes(name, "classes", labels, target)
        classes, threshold, floor = self.settings
        frame = _Frame(target)
        levels = _levels(score[frame.known], floor)
        found = np.full(len(frame.sizes), np.nan, np.float32)
        false, reported = np.zeros((2, len(levels)), np.int64)
        for number, level in enumerate(levels):
            match = frame.match(score >= level)
            false[number], reported[number] = np.count_nonzero(match.false), match.inliers
            found[match.found & np.isnan(found)] = level
        self._add(inliers=int(np.count_nonzero(target == 0)), levels=len(levels), objects=len(frame.sizes))
        self._add(threshold=levels, false=false, reported=reported, size=frame.sizes, found=found)
        if self.has_threshold:
            stored = score >= np.float32(threshold) if stored is None else stored.astype(bool)
            check_sizes(name, "reported pixels", stored, target)
            match = frame.match(stored)
            by_class = _by_class(match, target, labels, stored, int(classes))[None]
            self._add(
                stored_found=match.found.astype(np.int64),
                stored_false=int(np.count_nonzero(match.false)),
                stored_classes=by_class,
            )
        self.images += 1

    @property
    def has_threshold(self) -> bool:
        return not np.isnan(self.settings[1])

    def merge(self, other: ObjectMetrics) -> None:
        """Add the frames of another with the same classes, threshold and floor, after the own ones."""
        if not np.array_equal(other.settings, self.settings, equal_nan=True):
            raise ValueError(f"cannot merge object metrics of {other.settings} into those of {self.settings}")
        self.images += other.images
        for key, parts in self._parts.items():
            parts += other._parts[key]

    def state_dict(self) -> dict[str, np.ndarray]:
        """Arrays for `numpy.savez`."""
        return {"settings": np.array(self.settings), "images": np.array(self.images), **self._state()}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> ObjectMetrics:
        """What `state_dict` returned, as read back by `numpy.load`."""
        classes, *thresholds = state["settings"].tolist()
        metrics = cls(int(classes), *(None if np.isnan(value) else value for value in thresholds))
        metrics.images = int(state["images"])
        for key, parts in metrics._parts.items():
            parts.append(state[key])
        return metrics

    def compute(self) -> ObjectResult:
        """The metrics of all frames so far."""
        state = self._state()
        objects, stored = len(state["size"]), self._stored(state)
        if objects == 0:
            reason = f"not defined: no object of at least {SMALLEST_OBJECT} pixels in {self.images} images"
            return ObjectResult(self.images, 0, reason, stored=stored)
        recall_at = self.replicates(np.ones((1, self.images)))[0, : len(RATES)]
        return ObjectResult(
            self.images,
            objects,
            score=float(recall_at.mean()),
            recall_at=tuple(recall_at.tolist()),
            curve=_Sweep(state).curve(),
            stored=stored,
        )

    def replicates(self, weights: np.ndarray) -> np.ndarray:
        """Figures with weighted images.

        Args:
            weights: replicates × images, how often each image counts.

        Returns:
            Replicates × (`RATES` + 3) float64: the recall at each rate, the FROC score, recall and false objects per
            frame at the stored threshold; NaN where a figure is not defined.
        """
        state = self._state()
        sweep = _Sweep(state)
        rows = max(1, _BATCH // max(sweep.events, 1))
        recall = [sweep.recall(weights[first : first + rows]) for first in range(0, len(weights), rows)]
        figures = [*np.concatenate(recall).T]
        with np.errstate(invalid="ignore", divide="ignore"):
            figures.append(np.mean(figures, axis=0))
            if self.has_threshold:
                found = np.bincount(sweep.owner, state["stored_found"], self.images)
                figures.append(weights @ found / (weights @ state["objects"]))
                figures.append(weights @ state["stored_false"] / weights.sum(axis=1))
            else:
                figures += [np.full(len(weights), np.nan)] * 2
        return np.stack(figures, axis=1)

    def _stored(self, state: Mapping[str, np.ndarray]) -> StoredResult | None:
        if not self.has_threshold:
            return None
        found, group = state["stored_found"].astype(bool), np.digitize(state["size"], SIZES) - 1
        groups = [found[group == number] for number in range(len(SIZES))]
        pixels, reported, objects = state["stored_classes"].sum(axis=0)
        return StoredResult(
            recall=_mean(found),
            false_per_frame=float(state["stored_false"].sum() / max(self.images, 1)),
            size_objects=tuple(map(len, groups)),
            size_recall=tuple(map(_mean, groups)),
            class_pixels=tuple(float(r / p) if p else None for r, p in zip(reported, pixels)),
            class_objects=tuple((objects / max(self.images, 1)).tolist()),
        )

    def _add(self, **values: np.ndarray | int) -> None:
        for key, value in values.items():
            self._parts[key].append(np.atleast_1d(value))

    def _state(self) -> dict[str, np.ndarray]:
        return {key: np.concatenate(parts) for key, parts in self._parts.items()}


@dataclass(frozen=True)
class _Match:
    """Reported objects of a frame beside its labelled ones."""

    numbers: np.ndarray
    """H×W int32: number of the reported component of each pixel, 0 outside."""
    false: np.ndarray
    """Of each number."""
    found: np.ndarray
    """Of each labelled object."""
    inliers: int
    """Reported inlier pixels."""


class _Frame:
    """The labelled objects of a frame."""

    def __init__(self, target: np.ndarray) -> None:
        outlier = target == 1
        self.known = (target == 0) | outlier
        self._pixels = np.flatnonzero(outlier)
        self._owner = _components(outlier)[1].ravel()[self._pixels]
        sizes = np.bincount(self._owner, minlength=1)
        self._counted = np.flatnonzero(sizes >= SMALLEST_OBJECT)
        self.sizes: np.ndarray = sizes[self._counted]

    def match(self, reported: np.ndarray) -> _Match:
        reported = reported & self.known
        count, numbers = _components(reported)
        area = np.zeros(count, np.int64)
        for top in range(0, len(numbers), _BAND):  # since bincount makes 8 bytes of each number
            band = slice(top, top + _BAND)
            area += np.bincount(numbers[band][reported[band]], minlength=count)
        at_outliers = numbers.ravel()[self._pixels]
        on_outliers = np.bincount(at_outliers, minlength=len(area))
        on_outliers[0] = 0  # the background
        large = area >= SMALLEST_REPORT
        covered = np.bincount(self._owner, large[at_outliers], int(self._counted.max(initial=0)) + 1)[self._counted]
        return _Match(
            numbers,
            false=large & (_SHARE_PARTS * on_outliers < area),
            found=_SHARE_PARTS * covered >= self.sizes,
            inliers=int(area.sum() - on_outliers.sum()),
        )


class _Sweep:
    """What changes in the sums over all images as the threshold falls, sorted from the highest threshold down."""

    def __init__(self, state: Mapping[str, np.ndarray]) -> None:
        images = np.arange(len(state["levels"]))
        self.owner = np.repeat(images, state["objects"])
        found = ~np.isnan(state["found"])
        level_image = np.repeat(images, state["levels"])
        threshold = np.concatenate([state["threshold"], state["found"][found]])
        order = np.argsort(-threshold, kind="stable")
        first = np.diff(level_image, prepend=-1) != 0
        changes = [np.where(first, v, np.diff(v, prepend=0)) for v in (state["false"], state["reported"])]
        none = np.zeros(np.count_nonzero(found))
        self.events = len(threshold)
        self._threshold = threshold[order]
        self._image = np.concatenate([level_image, self.owner[found]])[order]
        self._false, self._reported = (np.concatenate([change, none])[order] for change in changes)
        self._found = np.concatenate([np.zeros(len(level_image)), np.ones(len(none))])[order]
        self._last = np.flatnonzero(np.append(np.diff(self._threshold) != 0, True)[: self.events])
        self._inliers, self._objects = state["inliers"], state["objects"]

    def recall(self, weights: np.ndarray) -> np.ndarray:
        """Replicates × images → replicates × `RATES`; NaN without an object."""
        false, recall = self._points(weights)
        best = [np.max(np.where(false <= rate, recall, 0), axis=1, initial=0) for rate in RATES]
        defined = (weights @ self._objects > 0)[:, None]
        return np.where(defined, np.stack(best, axis=1), np.nan)

    def curve(self) -> ObjectCurve:
        false, recall = (values[0] for values in self._points(np.ones((1, len(self._inliers)))))
        order = np.lexsort((-recall, false))
        false, recall, threshold = false[order], recall[order], self._threshold[self._last][order]
        rises = recall > np.maximum.accumulate(np.append(0, recall))[:-1]
        kept = rises & np.isfinite(false)
        return ObjectCurve(threshold[kept].astype(float), false[kept], recall[kept])

    def _points(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """False objects per frame (infinite where too much is reported) and recall, replicates × thresholds."""
        each = weights[:, self._image]
        false, reported, found = (
            np.cumsum(each * change, axis=1)[:, self._last] for change in (self._false, self._reported, self._found)
        )
        too_much = reported > MOST_REPORTED * (weights @ self._inliers)[:, None]
        false = np.where(too_much, np.inf, false / weights.sum(axis=1, keepdims=True))
        return false, found / np.maximum(weights @ self._objects, 1)[:, None]


def _levels(scores: np.ndarray, floor: float) -> np.ndarray:
    """Thresholds for a frame's known scores, sorted in place, from the highest down; none for a floor of NaN."""
    scores.sort()
    rises = scores[1:] != scores[:-1]
    if np.count_nonzero(rises) < LEVELS:
        levels = np.unique(scores)[::-1]
    else:
        steps = np.arange(np.log(len(scores) / SMALLEST_REPORT) / np.log(_STEP) + 1)
        counts = np.minimum(SMALLEST_REPORT * _STEP**steps, len(scores)).astype(np.int64)
        levels = np.unique(scores[-counts])[::-1]
    return levels[levels >= np.float32(floor)]


def _by_class(match: _Match, target: np.ndarray, labels: np.ndarray, reported: np.ndarray, classes: int) -> np.ndarray:
    """3 × classes int64: inlier pixels, those reported, false objects by the class of most of their inlier pixels."""
    inlier = (target == 0) & (labels < classes)
    counts = [np.bincount(labels[mask], minlength=classes) for mask in (inlier, inlier & reported)]
    within = inlier & match.false[match.numbers]
    pairs = match.numbers[within].astype(np.int64) * classes + labels[within]
    votes = np.bincount(pairs, minlength=len(match.false) * classes).reshape(-1, classes)
    majority = votes.argmax(axis=1)[votes.any(axis=1)]
    return np.stack([*counts, np.bincount(majority, minlength=classes)]).astype(np.int64)


def _components(mask: np.ndarray) -> tuple[int, np.ndarray]:
    """1 + number of 8-connected components, and the number of each pixel's, H×W int32, 0 outside the mask."""
    count, numbers = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    return count, np.asarray(numbers)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
