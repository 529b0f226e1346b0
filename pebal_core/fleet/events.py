"""Moments of a source: frames joined into events, and the most telling frame of each."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from ..footage import Frame
from ..outputs import Products

GAP = 1.0
"""Seconds between two alarming frames up to which they are one event."""
LONGEST = 20.0
"""Seconds after which another event begins, unless an object goes on that the event began with."""
QUANTILE = 0.999
"""Of the energies of a frame without a confirmed object: what the frame is ranked by."""
STEP = 4
"""Every so many pixels count for it, along both axes."""
LOOK_SIDE = 16
"""Bits of `look` along one side."""
SAME_LOOK = 0.1
"""Share of differing bits up to which two pictures look the same. Of a video of a highway, neighbouring frames differ
in 8 % (median) and frames a second apart in 21 %."""
SAME_PLACE = 0.3
"""Intersection over union from which two boxes are in one place."""
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Moment:
    """The most telling frame of an event."""

    source: str
    topic: str
    """Of a recording; else empty."""
    name: str
    """Of the frame within its source."""
    seconds: float
    """Of the frame since the source's first."""
    time_ns: int
    """When it was taken, in nanoseconds since the epoch; 0: not known."""
    first: float
    last: float
    """Seconds at which the event begins and ends."""
    energy: float
    """Nats: the highest mean energy of a confirmed object, else the `QUANTILE` of the frame."""
    objects: tuple[dict[str, Any], ...]
    """Confirmed objects, as in ``objects.jsonl``."""
    look: str
    """Difference hash of the frame, hexadecimal."""
    object_look: str
    """That of its strongest object; empty: there is none."""

    @property
    def rank(self) -> tuple[bool, float]:
        """Confirmed objects come first, then the energy decides."""
        return bool(self.objects), self.energy

    @property
    def distance(self) -> float | None:
        """Metres to the nearest confirmed object, where it is known."""
        return min((one["distance_m"] for one in self.objects if one["distance_m"] is not None), default=None)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Moment:
        return cls(**{**values, "objects": tuple(values["objects"])})


@dataclass(frozen=True)
class Kept:
    """A moment with its pictures as JPEG."""

    moment: Moment
    image: bytes
    overlay: bytes


class EventFinder:
    """Joins the frames of one source into events and keeps the best of them.

    Frames with a confirmed object belong to one event while an object goes on, or while at most `GAP` seconds lie
    between them. Frames without one are grouped likewise where their highest energies reach the threshold; once an
    object is confirmed, the last of them belong to its event.

    Args:
        top: events that are kept.
        threshold: nats; None: every frame may be of interest.
    """

    def __init__(self, source: str, top: int, threshold: float | None) -> None:
        self._source, self._top, self._threshold = source, top, threshold
        self._open: _Event | None = None
        self._best: list[tuple[tuple[bool, float], int, Kept]] = []
        self._numbers = itertools.count(0, -1)  # of two events of one rank, the earlier stays

    def add(self, frame: Frame, products: Products, ignored: np.ndarray | None) -> float:
        """Take up the next frame; returns the `QUANTILE` of its energies in nats."""
        ids = {found.id for found, _ in products.sighting.confirmed}
        energy = _frame_energy(products, ignored)
        alarming = bool(ids) or self._threshold is None or energy >= self._threshold
        event = self._open
        if event is not None and not event.takes(frame.seconds, ids):
            self._close()
            event = None
        if alarming:
            if event is None:
                event = self._open = _Event(frame.seconds, bool(ids))
            event.add(frame, products, ids, energy)
        return energy

    def finish(self) -> list[Kept]:
        """The events, the most telling first."""
        self._close()
        return [kept for _, _, kept in sorted(self._best, key=lambda entry: entry[:2], reverse=True)]

    def _close(self) -> None:
        event, self._open = self._open, None
        if event is None or event.best is None:
            return
        rank = (event.with_objects, event.energy)
        if len(self._best) == self._top and rank <= self._best[0][0]:
            return
        entry = (rank, next(self._numbers), event.kept(self._source, *event.best))
        (heapq.heappush if len(self._best) < self._top else heapq.heappushpop)(self._best, entry)


class _Event:
    def __init__(self, first: float, with_objects: bool) -> None:
        self.first = self.last = first
        self.with_objects = with_objects
        self.energy = -np.inf
        self.ids: set[int] = set()
        self.best: tuple[Frame, Products] | None = None

    def takes(self, seconds: float, ids: set[int]) -> bool:
        """Whether a frame still belongs to this event: one without an alarm does until the gap is over."""
        if seconds < self.first:
            return False  # the clock was set back
        if ids & self.ids:
            return True
        return seconds - self.last <= GAP and seconds - self.first <= LONGEST

    def add(self, frame: Frame, products: Products, ids: set[int], energy: float) -> None:
        if self.with_objects and not ids:
            return  # it only fills a gap
        if ids and not self.with_objects:
            self.first, self.with_objects, self.energy = max(self.first, frame.seconds - GAP), True, -np.inf
        self.last = frame.seconds
        self.ids |= ids
        if self.with_objects:
            energy = max(found.mean_energy for found, _ in products.sighting.confirmed)
        if energy > self.energy:
            self.energy = energy
            self.best = frame, products

    def kept(self, source: str, frame: Frame, products: Products) -> Kept:
        confirmed = sorted((found for found, _ in products.sighting.confirmed), key=lambda found: -found.mean_energy)
        object_look = ""
        if confirmed:
            x, y, width, height = confirmed[0].box
            object_look = difference_hash(frame.image[y : y + height, x : x + width])
        recorded = frame.recorded
        moment = Moment(
            source=source,
            topic=recorded.topic if recorded is not None else "",
            name=frame.name,
            seconds=round(frame.seconds, 6),
            time_ns=(recorded.stamp_ns or recorded.log_ns) if recorded is not None else 0,
            first=round(self.first, 6),
            last=round(self.last, 6),
            energy=round(float(self.energy), 4),
            objects=tuple(found.as_json() for found in confirmed),
            look=difference_hash(frame.image),
            object_look=object_look,
        )
        return Kept(moment, _jpeg(frame.image), _jpeg(products.overlay))


def select(moments: Sequence[Moment], top: int) -> tuple[list[Moment], int]:
    """The highest ranked moments that do not look alike, and the number of near-duplicates left out on the way."""
    chosen: list[Moment] = []
    left_out = 0
    for moment in sorted(moments, key=lambda one: one.rank, reverse=True):
        if len(chosen) == top:
            break
        if any(_alike(moment, other) for other in chosen):
            left_out += 1
        else:
            chosen.append(moment)
    return chosen, left_out


def _alike(one: Moment, other: Moment) -> bool:
    """Whether the frames look the same, and their strongest objects lie in one place and look the same as well."""
    if bool(one.object_look) != bool(other.object_look) or _differing(one.look, other.look) > SAME_LOOK:
        return False
    if not one.object_look:
        return True
    same_place = _overlap(one.objects[0]["box"], other.objects[0]["box"]) >= SAME_PLACE
    return same_place and _differing(one.object_look, other.object_look) <= SAME_LOOK


def _overlap(one: Sequence[int], other: Sequence[int]) -> float:
    """Intersection over union of two boxes x, y, width, height."""
    width, height = (
        max(0, min(one[axis] + one[axis + 2], other[axis] + other[axis + 2]) - max(one[axis], other[axis]))
        for axis in (0, 1)
    )
    return width * height / (one[2] * one[3] + other[2] * other[3] - width * height)


def difference_hash(image: np.ndarray) -> str:
    """Whether each of `LOOK_SIDE`² places is brighter than the one to its right, hexadecimal."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (LOOK_SIDE + 1, LOOK_SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)
    return np.packbits(small[:, :-1] > small[:, 1:]).tobytes().hex()


def _differing(one: str, other: str) -> float:
    """Share of bits that differ."""
    return (int(one, 16) ^ int(other, 16)).bit_count() / (4 * len(one))


def _frame_energy(products: Products, ignored: np.ndarray | None) -> float:
    energy = products.energy[::STEP, ::STEP]
    if ignored is not None:
        energy = energy[ignored[::STEP, ::STEP] == 0]
    return float(np.quantile(energy, QUANTILE)) if energy.size else -np.inf


def _jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
