"""What became of a camera's stream: counts, rates over the last seconds, percentiles over the last frames."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import numpy as np

RATE_WINDOW = 5.0  # seconds
LAST_FRAMES = 200


@dataclass
class FrameCounts:
    """What became of the frames that left the mailbox, each counted once, and of those that never reached it.

    With the mailbox's own counts, once no frame waits or is being worked on:
    ``received = answered + bad + stale + unheard + failed + unsent + superseded + dropped by the mailbox``.
    """

    answered: int = 0
    """At least one output was published."""
    bad: int = 0
    """Malformed: wrong length, step, size or encoding."""
    stale: int = 0
    """Older than max_age."""
    unheard: int = 0
    """Nobody listened to any output, so nothing was computed."""
    failed: int = 0
    """The engine raised."""
    unsent: int = 0
    """Computed, but the middleware refused every output."""
    superseded: int = 0
    """A newer frame came while the engine warmed up for this one's size."""
    lost: int = 0
    """Sent, but never handed to the node by the middleware: gaps in the publisher's sequence numbers."""


class RateMeter:
    """Events per second over the last `RATE_WINDOW` seconds."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=1000)

    def tick(self) -> None:
        self._times.append(time.monotonic())

    def hertz(self) -> float:
        """Mean rate, from the intervals that ended within the window; 0 when there are none, or it has stopped."""
        now, times = time.monotonic(), tuple(self._times)
        if len(times) < 2:
            return 0.0
        outside = sum(now - t >= RATE_WINDOW for t in times)
        first = min(max(outside - 1, 0), len(times) - 2)
        intervals, span = len(times) - 1 - first, times[-1] - times[first]
        if span <= 0 or now - times[-1] > max(RATE_WINDOW, 2 * span / intervals):
            return 0.0
        return intervals / span

    def age(self) -> float | None:
        """Seconds since the last event, or None if there was none."""
        times = tuple(self._times)
        return time.monotonic() - times[-1] if times else None


class StageTimes:
    """Durations per stage over the last `LAST_FRAMES` frames."""

    def __init__(self) -> None:
        self._seconds: dict[str, deque[float]] = {}

    def add(self, stage: str, seconds: float) -> None:
        self._seconds.setdefault(stage, deque(maxlen=LAST_FRAMES)).append(seconds)

    def percentiles(self) -> dict[str, tuple[float, float]]:
        """(p50, p95) in milliseconds of every stage seen, in the order in which they were first seen."""
        report = {}
        for stage, seconds in tuple(self._seconds.items()):
            if not seconds:  # looked at between two steps of `add`
                continue
            p50, p95 = np.percentile(tuple(seconds), (50, 95))
            report[stage] = (1e3 * float(p50), 1e3 * float(p95))
        return report


class SequenceGaps:
    """Counts frames that a publisher sent and the middleware never handed over.

    The middleware numbers the messages of each publisher. A first message sets the mark (what went before it
    was sent before the two had met). A lower number came late; where the publisher has no name, it was restarted.
    """

    def __init__(self) -> None:
        self._last: dict[bytes, int] = {}

    def missing_before(self, publisher: bytes, number: int) -> int:
        """Messages of this publisher missing between its previous one and this."""
        previous = self._last.get(publisher)
        if publisher and previous is not None and number <= previous:
            return 0
        self._last[publisher] = number
        return max(number - previous - 1, 0) if previous is not None else 0
