"""What became of a camera's stream: counts, rates over the last seconds, percentiles over the last frames."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

RATE_WINDOW = 5.0  # seconds
LAST_FRAMES = 200


@dataclass(frozen=True)
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
        for stage, seconds in self._seconds.items():
            p50, p95 = np.percentile(seconds, (50, 95))
            report[stage] = (1e3 * float(p50), 1e3 * float(p95))
        return report


@dataclass(frozen=True)
class CameraSnapshot:
    """A `CameraRecord` of one moment."""

    counts: FrameCounts = field(default_factory=FrameCounts)
    rate_in: float = 0.0
    """Frames per second, as those that follow."""
    rate_out: float = 0.0
    rate_dropped: float = 0.0
    rate_stale: float = 0.0
    age: float | None = None
    """Seconds since the last frame came; None: none has since the camera was opened."""
    stages: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """(p50, p95) in milliseconds by stage."""
    opened_for: float = 0.0
    """Seconds since the camera was opened; 0 while it is closed."""
    wanted_for: float = 0.0
    """Seconds since the first frame of which an output was wanted, after a time without; 0: none is wanted."""
    last_was_bad: bool = False
    """Whether the last frame that was decoded was malformed."""
    last_error: str = ""
    refused: tuple[str, ...] = ()
    """Outputs of the last answer that the middleware refused."""
    engine_error: str = ""
    """How the engine failed last on this camera's frames; empty once it succeeded."""
    frame_id: str = ""
    picture: str = "none yet"
    """Size and encoding of the last good frame, in words."""
    clock_offset: float = 0.0
    """Seconds from the last frame's stamp to its arrival, by the node's clock."""


class CameraRecord:
    """The account of a camera's frames.

    The executor records what comes, the inference thread what becomes of it, and the diagnostics read a `snapshot`;
    one lock makes each of these whole.
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
        """Of this, what is not counted or measured is current."""

    def _count(self, **more: int) -> None:
        self._counts = replace(self._counts, **{name: getattr(self._counts, name) + n for name, n in more.items()})

    @property
    def engine_error(self) -> str:
        """How the engine failed last on this camera's frames; empty once it succeeded."""
        with self._lock:
            return self._last.engine_error

    def snapshot(self) -> CameraSnapshot:
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
        with self._lock:
            self._opened_at, self._wanted_since = time.monotonic(), None
            self._rate_in = RateMeter()  # a pause is no interval between frames

    def closed(self) -> None:
        with self._lock:
            self._opened_at, self._engine_failures = None, 0
            self._last = replace(self._last, engine_error="")

    def received(self, frame_id: str, clock_offset: float, lost: int, replaced: bool) -> None:
        """A frame came.

        Args:
            frame_id: of the camera.
            clock_offset: seconds from its stamp to its arrival.
            lost: frames before it that the middleware never handed over.
            replaced: whether it took the place of one that waited.
        """
        with self._lock:
            self._rate_in.tick()
            self._count(lost=lost)
            self._last = replace(self._last, frame_id=frame_id, clock_offset=clock_offset)
            if replaced:
                self._rate_dropped.tick()

    def wanted(self) -> None:
        """Somebody listens. After a time without, the rates so far say nothing about what comes."""
        with self._lock:
            if self._wanted_since is None:
                self._wanted_since = time.monotonic()
                self._rate_out, self._rate_dropped, self._rate_stale = RateMeter(), RateMeter(), RateMeter()

    def unheard(self) -> None:
        """Nobody listens, so nobody looks at malformed frames any longer."""
        with self._lock:
            self._count(unheard=1)
            self._wanted_since = None
            self._last = replace(self._last, last_was_bad=False)

    def stale(self) -> None:
        with self._lock:
            self._count(stale=1)
            self._rate_stale.tick()
            self._last = replace(self._last, last_was_bad=False)

    def took(self, stages: Mapping[str, float]) -> None:
        """Seconds that a frame spent in stages."""
        with self._lock:
            for stage, seconds in stages.items():
                self._stages.add(stage, seconds)

    def decoded(self, picture: str) -> None:
        with self._lock:
            self._last = replace(self._last, picture=picture)

    def bad(self, sentence: str) -> None:
        with self._lock:
            self._count(bad=1)
            self._last = replace(self._last, last_was_bad=True, last_error=sentence)

    def superseded(self) -> None:
        with self._lock:
            self._count(superseded=1)

    def failed(self, sentence: str) -> int:
        """The engine failed; how often in a row it did on this camera's frames."""
        with self._lock:
            self._count(failed=1)
            self._engine_failures += 1
            self._last = replace(self._last, last_was_bad=False, engine_error=sentence)
            return self._engine_failures

    def computed(self) -> None:
        """The engine succeeded."""
        with self._lock:
            self._engine_failures = 0
            self._last = replace(self._last, engine_error="")

    def published(self, refused: Mapping[str, str], outputs: int) -> bool:
        """An answer went out; whether at least one of its outputs did.

        Args:
            refused: outputs that the middleware refused, with its reasons.
            outputs: how many there were.
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
