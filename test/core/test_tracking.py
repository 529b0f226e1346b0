"""Objects over time: numbers that stay, confirmation, gaps, changing rates and stamps that go back."""

from __future__ import annotations

import numpy as np
import pytest

from pebal_core.errors import PebalError
from pebal_core.objects import ObjectTracker, RoadObject, TrackRules

EMPTY = np.empty((0, 2), np.int32)


def at(x: float, y: float, width: float = 20, height: float = 20) -> RoadObject:
    box = (round(x), round(y), round(width), round(height))
    return RoadObject(box, box[2] * box[3], -3, -2, 0, (box[0], box[1]), EMPTY, EMPTY, np.ones((box[3], box[2]), bool))


def test_confirmed_after_k_of_n() -> None:
    tracker = ObjectTracker(TrackRules(confirm_hits=3, confirm_window=4, max_gap=1))
    seen = [True, False, True, False, False, True, True, True]
    confirmed = []
    for index, visible in enumerate(seen):
        objects = tracker.update([at(100, 100)] if visible else [], index / 10)
        confirmed.append(objects[0].confirmed if objects else None)
        assert all(found.id == 1 for found in objects)
    assert confirmed == [False, None, False, None, None, False, False, True]


def test_number_stays_through_a_short_gap_and_goes_after_a_long_one() -> None:
    tracker = ObjectTracker(TrackRules(max_gap=0.5))
    assert tracker.update([at(100, 100)], 0.0)[0].id == 1
    for stamp in (0.1, 0.2, 0.3):
        assert tracker.update([], stamp) == []
    assert tracker.update([at(102, 100)], 0.4)[0].id == 1
    for stamp in (0.5, 0.7, 1.0):
        tracker.update([], stamp)
    assert tracker.update([at(102, 100)], 1.1)[0].id == 2


def test_one_missed_image_never_ends_an_object_however_slow_the_camera() -> None:
    tracker = ObjectTracker(TrackRules(max_gap=0.2))
    assert tracker.update([at(100, 100)], 0.0)[0].id == 1
    assert tracker.update([at(101, 100)], 2.0)[0].id == 1


@pytest.mark.parametrize("intervals", [[1 / 30], [0.1], [0.4], [1 / 30, 0.1, 0.2, 1 / 30, 0.033, 0.25]])
def test_an_object_that_approaches_is_confirmed_and_keeps_its_number_at_any_rate(intervals: list[float]) -> None:
    """A box of 1 m at 12 m/s, from 40 m to 6 m, before a camera of 1000 px focal length 1.5 m above the road."""
    tracker = ObjectTracker(TrackRules())
    stamp, numbers, step = 0.0, set(), 0
    while (distance := 40 - 12 * stamp) > 6:
        size = 1000 / distance
        (found,) = tracker.update([at(640 - size / 2, 360 + 500 / distance, size, size)], stamp)
        numbers.add(found.id)
        assert found.confirmed == (step >= 2)
        stamp += intervals[step % len(intervals)]
        step += 1
    assert numbers == {1}


@pytest.mark.parametrize(("min_overlap", "confirmed"), [(0.6, False), (0.0, True)])
def test_a_sighting_with_another_outline_does_not_count(min_overlap: float, confirmed: bool) -> None:
    """A glow that spreads and shrinks from image to image, such as that of a verge."""
    tracker = ObjectTracker(TrackRules(min_overlap=min_overlap))
    for step in range(8):
        objects = tracker.update([at(100, 100, 60 if step % 2 else 30, 40 if step % 2 else 20)], step / 5)
    assert objects[0].id == 1 and objects[0].confirmed == confirmed


def test_the_prediction_counts_as_well_as_the_previous_box() -> None:
    """An object that crosses by its own width from image to image overlaps only with its prediction."""
    tracker = ObjectTracker(TrackRules(min_giou=-0.6))
    objects = [tracker.update([at(100 + 24 * step, 100)], step / 5)[0] for step in range(8)]
    assert {found.id for found in objects} == {1}
    assert objects[-1].confirmed and not objects[2].confirmed


def test_two_objects_that_pass_each_other_keep_their_numbers() -> None:
    tracker = ObjectTracker(TrackRules())
    for step in range(30):
        objects = tracker.update([at(100 + 8 * step, 100), at(340 - 8 * step, 130)], step / 30)
        assert [found.id for found in objects] == [1, 2]


def test_stamps_that_go_back_begin_anew() -> None:
    tracker = ObjectTracker(TrackRules(confirm_hits=2, confirm_window=2))
    for stamp in (5.0, 5.1):
        objects = tracker.update([at(100, 100)], stamp)
    assert objects[0].confirmed
    (again,) = tracker.update([at(100, 100)], 1.0)
    assert again.id == 2 and not again.confirmed


def test_equal_stamps_are_taken() -> None:
    tracker = ObjectTracker(TrackRules())
    assert tracker.update([at(100, 100)], 1.0)[0].id == tracker.update([at(104, 100)], 1.0)[0].id == 1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"confirm_hits": 6, "confirm_window": 5}, r"confirm_hits \(6\) must lie between 1 and confirm_window \(5\)"),
        ({"confirm_window": 0}, "confirm_window must lie between 1 and 100 images"),
        ({"max_gap": -1}, "max_gap must lie between 0 and 60 seconds"),
        ({"min_giou": 2}, "min_giou"),
        ({"min_overlap": 1}, "min_overlap must be at least 0 and below 1"),
    ],
)
def test_rules_are_checked(settings: dict[str, int], reason: str) -> None:
    with pytest.raises(PebalError, match=reason):
        TrackRules(**settings)
