"""Groups the frames of a source into events and selects the most relevant frame of each as its moment."""

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
"""Alarming frames belong to one event if at most this many seconds lie between them."""
LONGEST = 20.0
"""Seconds after which a new event begins, unless an object of the event is still visible."""
QUANTILE = 0.999
"""Quantile of the energies by which a frame without a confirmed object is ranked."""
STEP = 4
"""Stride in pixels, along both axes, with which energies are sampled for the quantile."""
LOOK_SIDE = 16
"""Bits of `look` along one side."""
SAME_LOOK = 0.1
"""Two images look the same if at most this share of bits differs. In a video of a highway, neighbouring frames differ
in 8 % (median) and frames a second apart in 21 %."""
SAME_PLACE = 0.3
"""Two boxes are in the same place from this intersection over union on."""
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Moment:
    """The most relevant frame of an event."""

    source: str
    topic: str
    """Image topic of a recording; empty for other sources."""
    name: str
    """Name of the frame within its source."""
    seconds: float
    """Time of the frame since the first frame of the source."""
    time_ns: int
    """Time stamp in nanoseconds since the epoch; 0 if unknown."""
    first: float
    """Start of the event in seconds."""
    last: float
    """End of the event in seconds."""
    energy: float
    """Highest mean energy of a confirmed object, otherwise the `QUANTILE` of the frame, in nats."""
    objects: tuple[dict[str, Any], ...]
    """Confirmed objects, as in ``objects.jsonl``."""
    look: str
    """Difference hash of the frame, hexadecimal."""
    object_look: str
    """Difference hash of the object with the highest energy; empty if there is no object."""

    @property
    def rank(self) -> tuple[bool, float]:
        """Sort key that puts moments with confirmed objects first and then ranks by energy."""
        return bool(self.objects), self.energy

    @property
    def distance(self) -> float | None:
        """Metres to the nearest confirmed object; None if unknown."""
        return min((one["distance_m"] for one in self.objects if one["distance_m"] is not None), default=None)

    def as_json(self) -> dict[str, Any]:
        """The moment as JSON types, which `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Moment:
        """Restore a moment from the result of `as_json`."""
        return cls(**{**values, "objects": tuple(values["objects"])})


@dataclass(frozen=True)
class Kept:
    """A moment with its images as JPEG."""

    moment: Moment
    image: bytes
    overlay: bytes


class EventFinder:
    """Groups the frames of one source into events and keeps the best of them.

    Frames with a confirmed object belong to one event while an object persists, or while at most `GAP` seconds lie
    between them. Frames without an object are grouped in the same way if their highest energies reach the threshold.
    Once an object is confirmed, the last of these frames belong to its event.

    Args:
        source: name of the source.
        top: number of events to keep.
        threshold: in nats; None treats every frame as alarming.

    Examples:
        >>> from pebal_core.detector import Result
        >>> from pebal_core.outputs import PictureSettings, Sighting
        >>> image, nothing = np.zeros((48, 64, 3), np.uint8), Sighting([], [], [], None, "base_footprint")
        >>> finder = EventFinder("drive.mp4", top=3, threshold=-4.0)
        >>> for seconds, peak in ((0.0, -10.0), (0.1, -3.0), (9.0, -2.0)):
        ...     result = Result(np.zeros((48, 64), np.uint8), np.full((48, 64), peak, np.float32))
        ...     products = Products(image, result, PictureSettings(None, -12.0, 0.0, 0.8), [], lambda: nothing)
        ...     _ = finder.add(Frame(f"at {seconds}", image, seconds), products, None)
        >>> [kept.moment.name for kept in finder.finish()]
        ['at 9.0', 'at 0.1']
    """

    def __init__(self, source: str, top: int, threshold: float | None) -> None:
        self._source, self._top, self._threshold = source, top, threshold
        self._open: _Event | None = None
        self._best: list[tuple[tuple[bool, float], int, Kept]] = []
        self._numbers = itertools.count(0, -1)  # of two events with the same rank, the earlier one is kept

    def add(self, frame: Frame, products: Products, ignored: np.ndarray | None) -> float:
        """Add the next frame.

        Args:
            frame: the frame.
            products: the detector's results.
            ignored: H×W uint8, nonzero where energies do not count; None if all count.

        Returns:
            The `QUANTILE` of the frame's energies in nats.
        """
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
        """The best events, in descending rank."""
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
        """Whether a frame still belongs to this event; frames without an alarm do until the gap is over."""
        if seconds < self.first:
            return False  # the clock jumped back
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
    """Select the `top` highest-ranked moments that do not look alike.

    Returns:
        The moments, and the number of near-duplicates that were skipped.

    Examples:
        >>> look = difference_hash(np.zeros((48, 64, 3), np.uint8))
        >>> moments = [Moment("a.mp4", "", "f", 0.0, 0, 0.0, 0.0, energy, (), look, "") for energy in (-3.0, -2.0)]
        >>> chosen, left_out = select(moments, top=10)  # both look the same
        >>> [one.energy for one in chosen], left_out
        ([-2.0], 1)
    """
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
    """Whether two frames look the same and their strongest objects look the same and are in the same place."""
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
    """Hexadecimal hash of an image (H×W×3 uint8 RGB).

    Each bit says whether one of `LOOK_SIDE`² cells is brighter than its right neighbour.

    Examples:
        >>> image = np.zeros((48, 64, 3), np.uint8)
        >>> image[:, :32] = 255
        >>> difference_hash(image)[:4]  # the bits of the first row
        '0180'
    """
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
