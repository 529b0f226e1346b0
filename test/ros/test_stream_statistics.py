"""Rates, percentiles and sequence gaps."""

from __future__ import annotations

import threading
import time

import pytest

from pebal_ros import stream_statistics
from pebal_ros.stream_statistics import CameraRecord, CameraSnapshot, RateMeter, SequenceGaps, StageTimes


def test_rate_of_a_steady_stream_and_after_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    meter = RateMeter()
    assert meter.hertz() == 0 and meter.age() is None
    for _ in range(50):
        meter.tick()
        now += 0.04
    assert meter.hertz() == pytest.approx(25.0) and meter.age() == pytest.approx(0.04)
    now += stream_statistics.RATE_WINDOW
    assert meter.hertz() == 0 and meter.age() == pytest.approx(5.04)


def test_rate_of_a_stream_slower_than_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    meter = RateMeter()
    for _ in range(4):
        meter.tick()
        now += 8.0
        assert meter.hertz() in (0.0, pytest.approx(1 / 8))
    now -= 1.0
    assert meter.hertz() == pytest.approx(1 / 8), "between two events it has not stopped"
    now += 10.0
    assert meter.hertz() == 0


def test_percentiles_over_the_last_frames() -> None:
    times = StageTimes()
    for milliseconds in [1000] * 50 + list(range(1, stream_statistics.LAST_FRAMES + 1)):
        times.add("inference", milliseconds / 1000)
    times.add("publish", 0.002)
    report = times.percentiles()
    assert list(report) == ["inference", "publish"]
    assert report["inference"] == pytest.approx((100.5, 190.05)) and report["publish"] == pytest.approx((2, 2))


def test_sequence_gaps_per_publisher() -> None:
    gaps = SequenceGaps()
    assert gaps.missing_before(b"a", 41) == 0, "what went before the first is not ours"
    assert gaps.missing_before(b"a", 42) == 0
    assert gaps.missing_before(b"b", 7) == 0
    assert gaps.missing_before(b"a", 46) == 3
    assert gaps.missing_before(b"a", 44) == 0, "it came late"
    assert gaps.missing_before(b"a", 47) == 0
    assert [gaps.missing_before(b"", number) for number in (41, 1, 2)] == [0, 0, 0], "a nameless publisher restarted"
    assert gaps.missing_before(b"b", 9) == 1


def test_a_record_says_what_became_of_each_frame() -> None:
    record = CameraRecord()
    assert record.snapshot() == CameraSnapshot()
    record.opened()
    record.received("front", 0.2, lost=3, replaced=False)
    record.wanted()
    record.bad("A frame was skipped.")
    before = record.snapshot()
    assert (before.counts.lost, before.counts.bad, before.last_was_bad) == (3, 1, True) and before.wanted_for > 0
    assert [record.failed("The engine failed."), record.failed("It failed again.")] == [1, 2]
    assert record.engine_error == "It failed again."
    record.computed()
    assert record.published({"score": "too large"}, 2) and not record.published({"score": "too large"}, 1)
    after = record.snapshot()
    assert after.last_error == "The middleware refused score: too large." and after.refused == ("score",)
    assert (after.counts.failed, after.counts.answered, after.counts.unsent) == (2, 1, 1) and not after.engine_error
    assert (before.counts.failed, before.counts.answered) == (0, 0), "a snapshot stays as it was taken"
    record.unheard()
    record.closed()
    assert record.snapshot().wanted_for == record.snapshot().opened_for == 0


def test_no_count_of_two_threads_is_lost() -> None:
    record, seen = CameraRecord(), []

    def receive() -> None:
        for _ in range(3000):
            record.received("front", 0.0, lost=1, replaced=False)

    def answer() -> None:
        for _ in range(3000):
            record.published({}, 1)
            record.took({"decode": 0.001})

    threads = [threading.Thread(target=work) for work in (receive, answer, receive, answer)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen.append(record.snapshot().counts)
    assert (record.snapshot().counts.lost, record.snapshot().counts.answered) == (6000, 6000)
    assert [one.lost for one in seen] == sorted(one.lost for one in seen)
