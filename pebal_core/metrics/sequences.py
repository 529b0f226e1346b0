"""Evaluates tracked objects on labelled sequences: recall, delay, identity switches and false objects.

An object *appears* once it has at least `MIN_OBJECT` pixels. It is *covered* in a frame if reported objects cover at
least `MIN_COVERED` of its pixels. A reported object is *false* if there is no frame in which at least `MIN_COVERED` of
its own pixels are on labelled objects; void pixels do not count.
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
    """History of one labelled object."""

    appeared: float
    """Time of the first appearance in seconds."""
    confirmed: float | None = None
    """Time of the first report in seconds."""
    width: int | None = None
    """Width in pixels when it was first reported."""
    last_id: int | None = None
    switches: int = 0


@dataclass(frozen=True)
class SequenceResult:
    """Figures over all sequences."""

    sequences: int
    frames: int
    minutes: float
    objects: int
    """Number of labelled objects that appeared."""
    reported: int
    """Number of labelled objects that were reported at least once."""
    share_reported: float | None
    """Share of labelled objects that were reported; None if there were none."""
    seconds_to_report: float | None
    """Median time from appearance to the first report, over the reported objects."""
    width_at_report: float | None
    """Median width in pixels of a labelled object when it was first reported."""
    id_switches: int
    """Number of times that the reported number of a labelled object changed."""
    false_objects: int
    """Number of reported objects that never were on a labelled object."""
    false_per_minute: float
    false_per_frame: float
    """Mean number of false objects per frame."""


@dataclass
class SequenceMetrics:
    """Accumulates sequences; call `begin` for each, then `update` with its frames in order.

    Examples:
        >>> metrics = SequenceMetrics()
        >>> metrics.begin(rate=10, frames=1)
        >>> labelled = np.zeros((20, 20), np.uint8)
        >>> labelled[:10, :10] = 1
        >>> metrics.update([], labelled, seconds=0.0)  # nothing is reported
        >>> metrics.compute().objects, metrics.compute().share_reported
        (1, 0.0)
    """

    sequences: int = 0
    frames: int = 0
    seconds: float = 0.0
    false_in_frames: int = 0
    """Number of reports of false objects, summed over frames."""
    false_objects: int = 0
    truths: list[_Truth] = field(default_factory=list)
    _current: dict[int, _Truth] = field(default_factory=dict)
    _reported: dict[int, list[bool]] = field(default_factory=dict)
    """For each reported object and each of its frames, whether it was on a labelled object."""

    def begin(self, rate: float, frames: int) -> None:
        """Start a new sequence, with its rate in frames per second and its number of frames."""
        self.end()
        self.sequences += 1
        self.seconds += frames / rate

    def end(self) -> None:
        """Finish the current sequence; `compute` calls this itself."""
        self.truths += self._current.values()
        for seen in self._reported.values():
            if not any(seen):
                self.false_objects += 1
                self.false_in_frames += len(seen)
        self._current, self._reported = {}, {}

    def update(self, reported: Sequence[RoadObject], labelled: np.ndarray, seconds: float) -> None:
        """Add a frame.

        Args:
            reported: the objects that are reported to the vehicle; with a temporal rule only the confirmed ones.
            labelled: H×W uint8, in which 0 is known, n is object n, and 255 is void.
            seconds: time since the start of the sequence.
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
                continue  # an object on void only is neither right nor wrong
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
        """Compute the figures of all sequences added so far."""
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
