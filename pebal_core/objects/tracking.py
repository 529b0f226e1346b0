"""Tracks objects over time, and confirms those that were seen with a steady outline in several frames."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import PebalError
from .rules import RoadObject

LONGEST_WINDOW = 100
"""Largest number of images over which sightings can be counted."""

OVERLAP_TIME = 0.2
"""Seconds between two sightings to which `TrackRules.min_overlap` refers."""


@dataclass(frozen=True)
class TrackRules:
    """The conditions under which an object is confirmed or dropped.

    Raises:
        PebalError: a setting is out of range, or `confirm_hits` exceeds `confirm_window`.

    Examples:
        >>> TrackRules(confirm_hits=6, confirm_window=5)
        Traceback (most recent call last):
            ...
        pebal_core.errors.PebalError: confirm_hits (6) must lie between 1 and confirm_window (5).
    """

    confirm_hits: int = 3
    """Number of sightings within the window that confirm an object; see `min_overlap`."""
    confirm_window: int = 5
    """Length of the window in images."""
    max_gap: float = 0.5
    """Seconds without a sighting after which a track ends; one missed image never ends it."""
    min_giou: float = -0.3
    """Smallest generalised IoU (Rezatofighi et al., CVPR 2019) of a box and its prediction; -1 matches any boxes."""
    min_overlap: float = 0.6
    """Smallest IoU of a box with the previous one, or with its prediction, for a sighting to count. The outlines of
    false objects change more from image to image than those of real ones. For t seconds between two sightings, with t
    above `OVERLAP_TIME`, the IoU must be at least ``min_overlap ** (t / OVERLAP_TIME)``. With 0, every sighting
    counts."""

    def __post_init__(self) -> None:
        if not 1 <= self.confirm_window <= LONGEST_WINDOW:
            raise PebalError(
                f"confirm_window must lie between 1 and {LONGEST_WINDOW} images, not {self.confirm_window}."
            )
        if not 1 <= self.confirm_hits <= self.confirm_window:
            raise PebalError(
                f"confirm_hits ({self.confirm_hits}) must lie between 1 and confirm_window ({self.confirm_window})."
            )
        if not 0 <= self.max_gap <= 60:
            raise PebalError(f"max_gap must lie between 0 and 60 seconds, not {self.max_gap:g}.")
        if not -1 <= self.min_giou < 1:
            raise PebalError(f"min_giou must lie between -1 and 1, not {self.min_giou:g}.")
        if not 0 <= self.min_overlap < 1:
            raise PebalError(f"min_overlap must be at least 0 and below 1, not {self.min_overlap:g}.")

    def overlap_after(self, seconds: float) -> float:
        """Smallest IoU at which a sighting counts, for a time in seconds since the previous one.

        Examples:
            >>> TrackRules(min_overlap=0.5).overlap_after(0.4)
            0.25
        """
        return self.min_overlap ** max(1.0, seconds / OVERLAP_TIME)


class _Track:
    """The history of one object."""

    def __init__(self, number: int, box: np.ndarray, stamp: float) -> None:
        self.number, self.box, self.seen = number, box, stamp
        self.hits: deque[bool] = deque([True], maxlen=LONGEST_WINDOW)
        self.missed = 0
        self.confirmed = False
        self.velocity = np.zeros(4)
        """Velocities of left, top, right and bottom in pixels per second."""

    def see(self, box: np.ndarray, stamp: float, counts: bool) -> None:
        self.hits.append(counts)
        if stamp > self.seen:
            self.velocity += 0.5 * ((box - self.box) / (stamp - self.seen) - self.velocity)
        self.box, self.seen, self.missed = box, stamp, 0

    def miss(self) -> None:
        self.missed += 1
        self.hits.append(False)

    def sightings(self, window: int) -> int:
        """Number of sightings in the last `window` images that count."""
        return sum(itertools.islice(reversed(self.hits), window))


class ObjectTracker:
    """Gives objects persistent track numbers, and confirms them.

    Boxes are matched greedily with the tracks' predictions (at constant velocity), by the generalised IoU. The few
    objects of a road scene need no optimal assignment, and trackers of public libraries expect a detector's scores and
    a constant frame rate.

    Args:
        rules: the conditions for confirming and dropping objects.

    Examples:
        >>> from pebal_core.objects import ObjectRules, find_objects
        >>> energy, road = np.full((60, 80), -10, np.float32), np.zeros((60, 80), np.uint8)
        >>> energy[30:45, 20:40] = -2
        >>> found = find_objects(energy, road, ObjectRules(threshold=-4, grow=-5)).objects
        >>> tracker = ObjectTracker(TrackRules(confirm_hits=2, confirm_window=3))
        >>> [(one.id, one.confirmed) for stamp in (0.0, 0.1) for one in tracker.update(found, stamp)]
        [(1, False), (1, True)]
    """

    def __init__(self, rules: TrackRules) -> None:
        self.rules = rules
        """The rules, which may be replaced between two images; objects keep their numbers."""
        self._tracks: list[_Track] = []
        self._numbers = itertools.count(1)
        self._last_stamp: float | None = None

    def update(self, objects: Sequence[RoadObject], stamp: float) -> list[RoadObject]:
        """Track the objects of the next image, and return them with `id` and `confirmed`.

        Args:
            objects: the objects that `find_objects` returned.
            stamp: time of the image in seconds. A stamp before the previous one restarts the tracking: all tracks are
                dropped, but their numbers are not used again.
        """
        if self._last_stamp is not None and stamp < self._last_stamp:
            self._tracks = []
        self._last_stamp = stamp
        # A track that was unseen for too long must not be continued by a new object in the same place.
        self._tracks = [t for t in self._tracks if t.missed == 0 or stamp - t.seen <= self.rules.max_gap]
        boxes = np.array([_corners(found.box) for found in objects], np.float64).reshape(-1, 4)
        matched = self._match(boxes, stamp)
        tracked = []
        for index, found in enumerate(objects):
            if index in matched:
                track, overlap = matched[index]
                track.see(boxes[index], stamp, overlap >= self.rules.overlap_after(stamp - track.seen))
            else:
                track = _Track(next(self._numbers), boxes[index], stamp)
                self._tracks.append(track)
            track.confirmed |= track.sightings(self.rules.confirm_window) >= self.rules.confirm_hits
            tracked.append(replace(found, id=track.number, confirmed=track.confirmed))
        seen = {found.id for found in tracked}
        for track in self._tracks:
            if track.number not in seen:
                track.miss()
        self._tracks = [t for t in self._tracks if t.missed <= 1 or stamp - t.seen <= self.rules.max_gap]
        return tracked

    def _match(self, boxes: np.ndarray, stamp: float) -> dict[int, tuple[_Track, float]]:
        """The tracks that boxes continue, and the IoU with their previous or predicted box, by the index of the box."""
        if not self._tracks or not len(boxes):
            return {}
        predicted, previous = _predict(self._tracks, stamp), np.array([track.box for track in self._tracks])
        likeness = generalised_iou(predicted, boxes)
        overlap, union = _overlap_and_union(np.stack([predicted, previous])[:, :, None], boxes)
        shares = (overlap / union).max(axis=0)
        matched: dict[int, tuple[_Track, float]] = {}
        while True:
            best = np.unravel_index(int(likeness.argmax()), likeness.shape)
            if likeness[best] < self.rules.min_giou:
                return matched
            matched[int(best[1])] = self._tracks[int(best[0])], float(shares[best])
            likeness[best[0], :] = likeness[:, best[1]] = -np.inf


def _predict(tracks: Sequence[_Track], stamp: float) -> np.ndarray:
    """Left, top, right and bottom (N×4) of tracks at a later time in seconds, assuming constant velocity."""
    boxes = np.array([track.box for track in tracks])
    elapsed = stamp - np.array([track.seen for track in tracks])
    moved = boxes + np.array([track.velocity for track in tracks]) * elapsed[:, None]
    valid = (moved[:, 2:] > moved[:, :2]).all(axis=1, keepdims=True)
    return np.where(valid, moved, boxes)


def generalised_iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Generalised IoU (N×M) of boxes N×4 and M×4 (left, top, right, bottom), which is IoU minus the empty hull share.

    Source: Rezatofighi et al., CVPR 2019.

    Examples:
        >>> generalised_iou(np.array([[0, 0, 2, 2]]), np.array([[0, 0, 2, 2], [2, 0, 4, 2], [6, 0, 8, 2]])).tolist()
        [[1.0, 0.0, -0.5]]
    """
    a, b = one[:, None], other[None]
    overlap, union = _overlap_and_union(a, b)
    hull = np.prod(np.maximum(a[..., 2:], b[..., 2:]) - np.minimum(a[..., :2], b[..., :2]), -1)
    return overlap / union - (hull - union) / hull


def _overlap_and_union(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas of the intersections and the unions of boxes (…×4: left, top, right, bottom), which are broadcast."""
    overlap = np.prod(np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None), -1)
    area_a, area_b = (np.prod(boxes[..., 2:] - boxes[..., :2], -1) for boxes in (a, b))
    return overlap, area_a + area_b - overlap


def _corners(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    x, y, width, height = box
    return x, y, x + width, y + height
