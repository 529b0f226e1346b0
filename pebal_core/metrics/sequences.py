"""Objects over time, against labelled sequences: found, how soon, under one number, and at what price.

An object *appears* once it has at least `MIN_OBJECT` pixels. It is *covered* in a frame where reported objects cover at
least `MIN_COVERED` of its pixels. A reported object is *false* if it never lies on a labelled object with at least
`MIN_COVERED` of its own pixels; void pixels do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..objects import RoadObject

MIN_OBJECT = 50
MIN_COVERED = 0.25
VOID_NUMBER = 255


@dataclass
class _Truth:
    """What became of one labelled object."""

    appeared: float
    confirmed: float | None = None
    width: int | None = None
    """Of the labelled object in pixels, when it was first reported."""
    last_id: int | None = None
    switches: int = 0


@dataclass(frozen=True)
class SequenceResult:
    """Figures over all sequences."""

    sequences: int
    frames: int
    minutes: float
    objects: int
    """Labelled objects that appeared."""
    reported: int
    """Of them, how many were ever reported."""
    share_reported: float | None
    """None: there was no labelled object."""
    seconds_to_report: float | None
    """Median over the objects that were reported, from their appearance on."""
    width_at_report: float | None
    """Median width of the labelled object in pixels when it was first reported."""
    id_switches: int
    false_objects: int
    """Numbers that were reported and never lay on a labelled object."""
    false_per_minute: float
    false_per_frame: float
    """Mean number of false objects that a frame reports."""


@dataclass
class SequenceMetrics:
    """Accumulates sequences; `begin` each, then `update` with its frames in order."""

    sequences: int = 0
    frames: int = 0
    seconds: float = 0.0
    false_in_frames: int = 0
    """False reports summed over frames."""
    false_objects: int = 0
    truths: list[_Truth] = field(default_factory=list)
    _current: dict[int, _Truth] = field(default_factory=dict)
    _reported: dict[int, list[bool]] = field(default_factory=dict)
    """By number of a reported object: in each frame, whether it lay on a labelled one."""

    def begin(self, rate: float, frames: int) -> None:
        """A new sequence of so many frames a second."""
        self.end()
        self.sequences += 1
        self.seconds += frames / rate

    def end(self) -> None:
        """Close the sequence in hand; `compute` does so by itself."""
        self.truths += self._current.values()
        for seen in self._reported.values():
            if not any(seen):
                self.false_objects += 1
                self.false_in_frames += len(seen)
        self._current, self._reported = {}, {}

    def update(self, reported: Sequence[RoadObject], labelled: np.ndarray, seconds: float) -> None:
        """Add a frame.

        Args:
            reported: what the vehicle is told of; with a temporal rule the confirmed objects alone.
            labelled: H×W uint8: 0 = known, n = object n, 255 = void.
            seconds: since the sequence began.
        """
        self.frames += 1
        sizes = np.bincount(labelled.ravel(), minlength=256)
        covered = np.zeros(256, np.int64)
        best: dict[int, tuple[int, int]] = {}
        for found in reported:
            x, y, width, height = found.box
            inside = np.bincount(labelled[y : y + height, x : x + width][found.mask], minlength=256)
            known, on_objects = int(inside[0]), int(inside[1:VOID_NUMBER].sum())
            if known + on_objects == 0:
                continue  # on void alone: neither right nor wrong
            self._reported.setdefault(found.id, []).append(on_objects >= MIN_COVERED * (known + on_objects))
            covered += inside
            for number in np.flatnonzero(inside[1:VOID_NUMBER]) + 1:
                if inside[number] > best.get(int(number), (0, 0))[0]:
                    best[int(number)] = int(inside[number]), found.id
        for number in np.flatnonzero(sizes[1:VOID_NUMBER] >= MIN_OBJECT) + 1:
            truth = self._current.setdefault(int(number), _Truth(seconds))
            if covered[number] < MIN_COVERED * sizes[number]:
                continue
            identity = best[int(number)][1]
            if truth.confirmed is None:
                truth.confirmed = seconds
                truth.width = int((labelled == number).any(axis=0).sum())
            elif identity != truth.last_id:
                truth.switches += 1
            truth.last_id = identity

    def compute(self) -> SequenceResult:
        """The figures of all sequences so far."""
        self.end()
        reported = [truth for truth in self.truths if truth.confirmed is not None]
        minutes = self.seconds / 60
        delays = [truth.confirmed - truth.appeared for truth in reported if truth.confirmed is not None]
        widths = [truth.width for truth in reported if truth.width is not None]
        return SequenceResult(
            self.sequences,
            self.frames,
            minutes,
            len(self.truths),
            len(reported),
            len(reported) / len(self.truths) if self.truths else None,
            float(np.median(delays)) if delays else None,
            float(np.median(widths)) if widths else None,
            sum(truth.switches for truth in self.truths),
            self.false_objects,
            self.false_objects / minutes if minutes else 0.0,
            self.false_in_frames / self.frames if self.frames else 0.0,
        )
