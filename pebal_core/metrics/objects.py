"""Counts found objects and false objects per frame, over all thresholds and at a stored threshold.

    labelled object   8-connected component of at least 50 outlier pixels
    reported object   8-connected component of at least 100 reported pixels, after void pixels are removed
    found             a labelled object of which reported objects cover at least 25 %
    false             a reported object of which less than 25 % are outlier pixels

A threshold t reports the pixels with score ≥ t. The curve of recall = found / labelled over false objects per frame,
pooled over all images, is the free-response ROC (FROC) curve. Its score is the mean, over `RATES`, of the best recall
at or below each rate of false objects (as in LUNA16; Setio et al., Medical Image Analysis 2017).

Thresholds are swept for each image separately. Each image is evaluated at about a hundred of its own scores. They are
chosen so that each reports a tenth more pixels than the previous one, from 100 pixels to the whole image. At a
threshold in between, an image counts as at the next higher of its scores. An image with at most `LEVELS` distinct
scores is evaluated at each of them, which is exact. Thresholds that report more than a tenth of all inlier pixels are
left out, because at the lowest thresholds everything merges into a single false object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from pebal_core.metrics.checks import check_scores, check_sizes

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Rates of false objects per frame over which the FROC score averages the recall."""

SMALLEST_OBJECT, SMALLEST_REPORT = 50, 100
"""Smallest areas of labelled and reported objects, in pixels at the size of the labels."""

SIZES = (50, 200, 1000, 5000)
"""Lower bounds in pixels of the groups of labelled objects whose recall is given separately."""

LEVELS = 128
"""Most distinct scores with which an image is evaluated at each of them."""
MOST_REPORTED = 0.1
"""Largest share of all inlier pixels that a threshold may report."""
_STEP = 1.1
_BAND = 128  # number of rows that are counted at once
_SHARE_PARTS = 4  # an object must be covered, and a report must consist of outliers, by one part in this many
_BATCH = 500_000  # number of events times replicates that are summed at once


@dataclass(frozen=True)
class ObjectCurve:
    """Operating points at which recall rises, in ascending order of false objects per frame.

    All arrays are float64 and have the same length.
    """

    threshold: np.ndarray
    false_per_frame: np.ndarray
    recall: np.ndarray


@dataclass(frozen=True)
class StoredResult:
    """The figures at the stored threshold."""

    recall: float | None
    """Share of labelled objects that are found; None if there are none."""
    false_per_frame: float
    size_objects: tuple[int, ...]
    """Number of labelled objects in each group of `SIZES`."""
    size_recall: tuple[float | None, ...]
    """Recall in each group of `SIZES`; None for an empty group."""
    class_pixels: tuple[float | None, ...]
    """Share of each class's inlier pixels that is reported; None for a class without pixels."""
    class_objects: tuple[float, ...]
    """False objects per frame, by the class to which most of their inlier pixels belong."""


@dataclass(frozen=True)
class ObjectResult:
    """Figures as fractions; those of the curve are None, with the reason in `undefined`, if there is no object."""

    images: int
    objects: int
    undefined: str | None = None
    score: float | None = None
    """Mean of `recall_at`."""
    recall_at: tuple[float, ...] | None = None
    """Recall at each of `RATES`."""
    curve: ObjectCurve | None = None
    stored: StoredResult | None = None
    """Figures at the stored threshold; None if there is none."""


class ObjectMetrics:
    """Accumulates labelled and reported objects frame by frame.

    The state keeps a few hundred numbers per image, so that images can be weighted for a bootstrap.

    Args:
        classes: number of known classes.
        threshold: the stored threshold; None computes only the curve.
        floor: lowest threshold of the sweep; None sweeps no thresholds, for a set without outliers.

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
        self.settings = (classes, *(np.nan if value is None else float(value) for value in (threshold, floor)))
        self.images = 0
        number, score = np.zeros(0, np.int64), np.zeros(0, np.float32)
        self._parts: dict[str, list[np.ndarray]] = {
            "inliers": [number],  # number of inlier pixels of each image
            "levels": [number],  # number of levels of each image
            "threshold": [score],  # threshold of each level
            "false": [number],  # number of false objects at each level
            "reported": [number],  # number of reported inlier pixels at each level
            "objects": [number],  # number of labelled objects of each image
            "size": [number],  # number of pixels of each labelled object
            "found": [score],  # highest level at which each labelled object is found, else NaN
            "stored_found": [number],  # 1 for each labelled object that is found at the stored threshold, else 0
            "stored_false": [number],  # number of false objects of each image at the stored threshold
            "stored_classes": [np.zeros((0, 3, classes), np.int64)],  # counts of each image, see `_by_class`
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
            score: H×W float32; a higher score is more anomalous.
            target: H×W uint8, 1 for anomalies, 0 for inliers, 255 for void.
            labels: H×W integers, the labelled or predicted class of each pixel; other values stand for no class.
            name: name of the frame, for messages.
            stored: H×W bool, the pixels that are reported at the stored threshold; None takes those whose score reaches
                it.

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
        """Whether there is a stored threshold."""
        return not np.isnan(self.settings[1])

    def merge(self, other: ObjectMetrics) -> None:
        """Append the frames of another instance with the same classes, threshold and floor."""
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
        """Restore from the arrays of `state_dict`, for example as read by `numpy.load`."""
        classes, *thresholds = state["settings"].tolist()
        metrics = cls(int(classes), *(None if np.isnan(value) else value for value in thresholds))
        metrics.images = int(state["images"])
        for key, parts in metrics._parts.items():
            parts.append(state[key])
        return metrics

    def compute(self) -> ObjectResult:
        """Compute the metrics of all frames added so far."""
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
        """Compute the figures with weighted images, for a bootstrap.

        Args:
            weights: replicates × images, how often each image counts.

        Returns:
            Replicates × (number of `RATES` + 3) float64, with the recall at each rate, the FROC score, and recall and
            false objects per frame at the stored threshold. Undefined figures are NaN.
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
    """The reported objects of a frame, matched with its labelled objects."""

    numbers: np.ndarray
    """H×W int32, the number of each pixel's reported component; 0 outside."""
    false: np.ndarray
    """For each number, whether the reported object is false."""
    found: np.ndarray
    """For each labelled object, whether it is found."""
    inliers: int
    """Number of reported inlier pixels."""


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
        for top in range(0, len(numbers), _BAND):  # bincount converts each number to 8 bytes, so bands save memory
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
    """Changes of the sums over all images as the threshold falls, sorted from the highest threshold down."""

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
        """Recall at each of `RATES` (replicates × rates) for weights (replicates × images); NaN without an object."""
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
        """False objects per frame (infinite if too many pixels are reported) and recall, replicates × thresholds."""
        each = weights[:, self._image]
        false, reported, found = (
            np.cumsum(each * change, axis=1)[:, self._last] for change in (self._false, self._reported, self._found)
        )
        too_much = reported > MOST_REPORTED * (weights @ self._inliers)[:, None]
        false = np.where(too_much, np.inf, false / weights.sum(axis=1, keepdims=True))
        return false, found / np.maximum(weights @ self._objects, 1)[:, None]


def _levels(scores: np.ndarray, floor: float) -> np.ndarray:
    """Thresholds for a frame's known scores, from the highest down; empty for a floor of NaN.

    `scores` are sorted in place.
    """
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
    """3 × classes int64, with inlier pixels, reported inlier pixels, and false objects by their majority class."""
    inlier = (target == 0) & (labels < classes)
    counts = [np.bincount(labels[mask], minlength=classes) for mask in (inlier, inlier & reported)]
    within = inlier & match.false[match.numbers]
    pairs = match.numbers[within].astype(np.int64) * classes + labels[within]
    votes = np.bincount(pairs, minlength=len(match.false) * classes).reshape(-1, classes)
    majority = votes.argmax(axis=1)[votes.any(axis=1)]
    return np.stack([*counts, np.bincount(majority, minlength=classes)]).astype(np.int64)


def _components(mask: np.ndarray) -> tuple[int, np.ndarray]:
    """1 + the number of 8-connected components, and each pixel's component (H×W int32, 0 outside the mask)."""
    count, numbers = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    return count, np.asarray(numbers)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
