"""Statistics of a camera's stream, with counts, rates over the last seconds, and percentiles over the last frames."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

RATE_WINDOW = 5.0  # seconds
LAST_FRAMES = 200  # number of frames over which percentiles are computed


@dataclass(frozen=True)
class FrameCounts:
    """Counts of the frames that left the mailbox, each counted once by its fate, and of frames that never reached it.

    When no frame is waiting or being processed, the counts and those of the mailbox satisfy
    ``received = answered + bad + stale + unheard + failed + unsent + superseded + dropped by the mailbox``.
    """

    answered: int = 0
    """Frames for which at least one output was published."""
    bad: int = 0
    """Malformed frames, with a wrong length, step, size or encoding."""
    stale: int = 0
    """Frames older than max_age."""
    unheard: int = 0
    """Frames that were not processed because no output had a subscriber."""
    failed: int = 0
    """Frames on which the engine failed."""
    unsent: int = 0
    """Frames that were processed, but whose outputs the middleware all refused."""
    superseded: int = 0
    """Frames that were replaced by a newer one while the engine warmed up for their size."""
    lost: int = 0
    """Frames that were sent but never delivered by the middleware, from gaps in the publisher's sequence numbers."""


class RateMeter:
    """Events per second over the last `RATE_WINDOW` seconds."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=1000)

    def tick(self) -> None:
        """Record an event."""
        self._times.append(time.monotonic())

    def hertz(self) -> float:
        """Mean rate over the intervals that ended within the window; 0 if there are none or the events have stopped."""
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
        """Seconds since the last event; None if there was none."""
        times = tuple(self._times)
        return time.monotonic() - times[-1] if times else None


class StageTimes:
    """Durations per stage over the last `LAST_FRAMES` frames."""

    def __init__(self) -> None:
        self._seconds: dict[str, deque[float]] = {}

    def add(self, stage: str, seconds: float) -> None:
        """Record the seconds that a frame spent in a stage."""
        self._seconds.setdefault(stage, deque(maxlen=LAST_FRAMES)).append(seconds)

    def percentiles(self) -> dict[str, tuple[float, float]]:
        """(p50, p95) in milliseconds of every stage, in the order in which the stages first occurred."""
        report = {}
        for stage, seconds in self._seconds.items():
            p50, p95 = np.percentile(seconds, (50, 95))
            report[stage] = (1e3 * float(p50), 1e3 * float(p95))
        return report


@dataclass(frozen=True)
class CameraSnapshot:
    """A consistent snapshot of a `CameraRecord`."""

    counts: FrameCounts = field(default_factory=FrameCounts)
    rate_in: float = 0.0
    """Frames received per second."""
    rate_out: float = 0.0
    """Frames answered per second."""
    rate_dropped: float = 0.0
    """Frames dropped by the mailbox per second."""
    rate_stale: float = 0.0
    """Frames skipped per second because they were too old."""
    age: float | None = None
    """Seconds since the last frame arrived; None if none has arrived since the camera was opened."""
    stages: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """(p50, p95) in milliseconds by stage."""
    opened_for: float = 0.0
    """Seconds since the camera was opened; 0 while it is closed."""
    wanted_for: float = 0.0
    """Seconds since the first frame for which an output was wanted; 0 if no output is wanted now."""
    last_was_bad: bool = False
    """Whether the last processed frame was malformed."""
    last_error: str = ""
    refused: tuple[str, ...] = ()
    """Outputs of the last answer that the middleware refused."""
    engine_error: str = ""
    """Last failure of the engine on this camera's frames; empty once the engine succeeds."""
    frame_id: str = ""
    picture: str = "none yet"
    """Size and encoding of the last valid frame, as text."""
    clock_offset: float = 0.0
    """Seconds from the last frame's stamp to its arrival, by the node's clock."""


class CameraRecord:
    """Records the fate of a camera's frames.

    The executor records the arrival of frames and the inference thread records their processing, while the diagnostics
    read a `snapshot`. A lock makes each of these operations atomic.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = FrameCounts()
        self._rate_in, self._rate_out, self._rate_dropped, self._rate_stale = (RateMeter() for _ in range(4))
        self._stages = StageTimes()
        self._opened_at: float | None = None
        self._wanted_since: float | None = None
        self._engine_failures = 0
        self._last = CameraSnapshot()
        """A snapshot of which only the fields that are not counted or measured are kept up to date."""

    def _count(self, **more: int) -> None:
        self._counts = replace(self._counts, **{name: getattr(self._counts, name) + n for name, n in more.items()})

    @property
    def engine_error(self) -> str:
        """Last failure of the engine on this camera's frames; empty once the engine succeeds."""
        with self._lock:
            return self._last.engine_error

    def snapshot(self) -> CameraSnapshot:
        """Take a consistent snapshot."""
        with self._lock:
            now = time.monotonic()
            return replace(
                self._last,
                counts=self._counts,
                rate_in=self._rate_in.hertz(),
                rate_out=self._rate_out.hertz(),
                rate_dropped=self._rate_dropped.hertz(),
                rate_stale=self._rate_stale.hertz(),
                age=self._rate_in.age(),
                stages=self._stages.percentiles(),
                opened_for=0.0 if self._opened_at is None else now - self._opened_at,
                wanted_for=0.0 if self._wanted_since is None else now - self._wanted_since,
            )

    def opened(self) -> None:
        """Record that the camera was opened."""
        with self._lock:
            self._opened_at, self._wanted_since = time.monotonic(), None
            self._rate_in = RateMeter()  # a pause must not count as an interval between frames

    def closed(self) -> None:
        """Record that the camera was closed."""
        with self._lock:
            self._opened_at, self._engine_failures = None, 0
            self._last = replace(self._last, engine_error="")

    def received(self, frame_id: str, clock_offset: float, lost: int, replaced: bool) -> None:
        """Record that a frame arrived.

        Args:
            frame_id: frame id of the camera.
            clock_offset: seconds from its stamp to its arrival.
            lost: number of frames before it that the middleware never delivered.
            replaced: whether it replaced a waiting frame.
        """
        with self._lock:
            self._rate_in.tick()
            self._count(lost=lost)
            self._last = replace(self._last, frame_id=frame_id, clock_offset=clock_offset)
            if replaced:
                self._rate_dropped.tick()

    def wanted(self) -> None:
        """Record that an output has a subscriber; after a time without one, the rates start again."""
        with self._lock:
            if self._wanted_since is None:
                self._wanted_since = time.monotonic()
                self._rate_out, self._rate_dropped, self._rate_stale = RateMeter(), RateMeter(), RateMeter()

    def unheard(self) -> None:
        """Record a frame without any subscriber to the outputs; malformed frames are not detected then."""
        with self._lock:
            self._count(unheard=1)
            self._wanted_since = None
            self._last = replace(self._last, last_was_bad=False)

    def stale(self) -> None:
        """Record a frame that was skipped because it was too old."""
        with self._lock:
            self._count(stale=1)
            self._rate_stale.tick()
            self._last = replace(self._last, last_was_bad=False)

    def took(self, stages: Mapping[str, float]) -> None:
        """Record the seconds that a frame spent in stages."""
        with self._lock:
            for stage, seconds in stages.items():
                self._stages.add(stage, seconds)

    def decoded(self, picture: str) -> None:
        """Record size and encoding of a valid frame."""
        with self._lock:
            self._last = replace(self._last, picture=picture)

    def bad(self, sentence: str) -> None:
        """Record a malformed frame, with a sentence that explains the fault."""
        with self._lock:
            self._count(bad=1)
            self._last = replace(self._last, last_was_bad=True, last_error=sentence)

    def superseded(self) -> None:
        """Record a frame that a newer one replaced while the engine warmed up."""
        with self._lock:
            self._count(superseded=1)

    def failed(self, sentence: str) -> int:
        """Record a failure of the engine; returns the number of failures in a row on this camera's frames."""
        with self._lock:
            self._count(failed=1)
            self._engine_failures += 1
            self._last = replace(self._last, last_was_bad=False, engine_error=sentence)
            return self._engine_failures

    def computed(self) -> None:
        """Record a success of the engine."""
        with self._lock:
            self._engine_failures = 0
            self._last = replace(self._last, engine_error="")

    def published(self, refused: Mapping[str, str], outputs: int) -> bool:
        """Record a published answer; returns whether at least one of its outputs was published.

        Args:
            refused: outputs that the middleware refused, with its reasons.
            outputs: number of outputs of the answer.
        """
        with self._lock:
            self._last = replace(self._last, last_was_bad=False, refused=tuple(refused))
            if refused:
                reasons = " and ".join(sorted(set(refused.values())))
                sentence = f"The middleware refused {', '.join(refused)}: {reasons}."
                self._last = replace(self._last, last_error=sentence)
            if len(refused) == outputs:
                self._count(unsent=1)
                return False
            self._count(answered=1)
            self._rate_out.tick()
            return True


class SequenceGaps:
    """Counts frames that a publisher sent but the middleware never delivered.

    The middleware numbers the messages of each publisher. The first received message is the reference, because earlier
    ones were sent before the connection existed. A lower number belongs to a late message or, if the publisher is not
    identified, means that it was restarted.

    Examples:
        >>> gaps = SequenceGaps()
        >>> [gaps.missing_before(b"camera", number) for number in (7, 8, 11)]
        [0, 0, 2]
    """

    def __init__(self) -> None:
        self._last: dict[bytes, int] = {}

    def missing_before(self, publisher: bytes, number: int) -> int:
        """Number of messages of a publisher that are missing between its previous message and this one."""
        previous = self._last.get(publisher)
        if publisher and previous is not None and number <= previous:
            return 0
        self._last[publisher] = number
        return max(number - previous - 1, 0) if previous is not None else 0
