"""Objects found and false objects per frame follow the definitions, pixel set by pixel set."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, label  # type: ignore[import-untyped]

import pebal_core.metrics.objects as module
from pebal_core.errors import PebalError
from pebal_core.metrics.objects import RATES, ObjectMetrics

Pixels = set[tuple[int, int]]
Maps = tuple[np.ndarray, np.ndarray]


def component_sets(mask: np.ndarray) -> list[Pixels]:
    """The 8-connected components of a mask as sets of (row, column)."""
    numbers, _ = label(mask, np.ones((3, 3)))
    return [{(int(y), int(x)) for y, x in np.argwhere(numbers == i)} for i in range(1, numbers.max() + 1)]


def by_definition(reported: np.ndarray, target: np.ndarray, smallest: tuple[int, int]) -> tuple[list[bool], int]:
    """Which labelled objects are found, and how many reported ones are false, in the words of the definition."""
    everything = {(int(y), int(x)) for y, x in np.argwhere(target == 1)}
    objects = [k for k in component_sets(target == 1) if len(k) >= smallest[0]]
    reports = [r for r in component_sets(reported & (target < 2)) if len(r) >= smallest[1]]
    covered: Pixels = set().union(*reports)
    return [len(k & covered) >= 0.25 * len(k) for k in objects], sum(
        len(r & everything) < 0.25 * len(r) for r in reports
    )


def froc_by_definition(frames: list[Maps], smallest: tuple[int, int]) -> list[float] | None:
    """Recall at each rate, trying every score that occurs as the threshold."""
    inliers = sum(np.count_nonzero(target == 0) for _, target in frames)
    best, objects = [0.0] * len(RATES), 0
    for threshold in np.unique([score for score, _ in frames]):
        matches = [by_definition(score >= threshold, target, smallest) for score, target in frames]
        found, objects = sum(sum(m[0]) for m in matches), sum(len(m[0]) for m in matches)
        if objects == 0:
            return None
        reported = sum(np.count_nonzero((score >= threshold) & (target == 0)) for score, target in frames)
        false = sum(m[1] for m in matches) / len(frames)
        if reported <= module.MOST_REPORTED * inliers:
            best = [max(b, found / objects) if false <= rate else b for b, rate in zip(best, RATES)]
    return best


def random_maps(seed: int) -> Maps:
    generator = np.random.default_rng(seed)
    score = generator.integers(0, 12, (12, 14)).astype(np.float32)
    target = generator.choice(np.array([0, 0, 0, 1, 255], np.uint8), (12, 14), p=generator.dirichlet([4, 4, 4, 3, 1]))
    return (score + 3 * (target == 1) * generator.integers(0, 2)).astype(np.float32), target


maps = st.integers(0, 2**32 - 1).map(random_maps)


@settings(max_examples=40, deadline=None)
@given(st.lists(maps, min_size=1, max_size=3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 11))
def test_equals_the_definition(frames: list[Maps], smallest_object: int, smallest_report: int, threshold: int) -> None:
    smallest = smallest_object, smallest_report
    metrics, rest = (ObjectMetrics(2, threshold) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SMALLEST_OBJECT", smallest_object)
        patch.setattr(module, "SMALLEST_REPORT", smallest_report)
        patch.setattr(module, "MOST_REPORTED", 0.5)
        for i, (score, target) in enumerate(frames):
            (rest if i else metrics).update(score, target, np.zeros(target.shape, np.uint8), name=f"{i}.png")
        metrics.merge(ObjectMetrics.from_state(rest.state_dict()))
        result, expected = metrics.compute(), froc_by_definition(frames, smallest)
    matches = [by_definition(score >= threshold, target, smallest) for score, target in frames]
    found = [one for match in matches for one in match[0]]
    assert (result.images, result.objects) == (len(frames), len(found)) and result.stored is not None
    assert result.stored.false_per_frame == sum(m[1] for m in matches) / len(frames)
    if expected is None:
        assert result.undefined is not None and (result.score, result.stored.recall) == (None, None)
        return
    assert result.stored.recall == pytest.approx(np.mean(found))
    assert result.recall_at == pytest.approx(expected) and result.score == pytest.approx(np.mean(expected))
    curve = result.curve
    assert curve is not None
    read = [curve.recall[curve.false_per_frame <= rate].max(initial=0) for rate in RATES]
    assert read == pytest.approx(expected)


def scene(seed: int, size: tuple[int, int] = (240, 320)) -> Maps:
    """Smooth noise with some bright objects on it: as many distinct scores as pixels."""
    generator = np.random.default_rng(seed)
    score = gaussian_filter(generator.normal(size=size), 6)
    target = np.zeros(size, np.uint8)
    for _ in range(4):
        y, x = generator.integers(0, size[0] - 40), generator.integers(0, size[1] - 40)
        target[y : y + generator.integers(10, 40), x : x + generator.integers(10, 40)] = 1
    score = score / score.std() + target * generator.uniform(0.5, 3)
    target[:20] = 255
    return score.astype(np.float32), target


def test_the_levels_of_an_image_are_dense_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth more pixels per level gives nearly the curve of a fiftieth more."""
    results = []
    for step in (1.1, 1.02):
        monkeypatch.setattr(module, "_STEP", step)
        metrics = ObjectMetrics(1)
        for seed in range(6):
            score, target = scene(seed)
            metrics.update(score, target, np.zeros(target.shape, np.uint8), name="")
        results.append(metrics.compute())
    coarse, fine = results
    assert coarse.score is not None and fine.score is not None and 0.2 < fine.score < 0.9
    assert coarse.score == pytest.approx(fine.score, abs=0.02)


def test_repeated_images_are_images_of_that_weight() -> None:
    parts = []
    for seed in range(4):
        part = ObjectMetrics(1, threshold=1.5)
        score, target = scene(seed)
        part.update(score, target, np.zeros(target.shape, np.uint8), name="")
        parts.append(part)
    total, repeated = ObjectMetrics(1, 1.5), ObjectMetrics(1, 1.5)
    for part, times in zip(parts, (1, 0, 2, 1)):
        total.merge(part)
        for _ in range(times):
            repeated.merge(part)
    figures, expected = total.replicates(np.array([[1, 1, 1, 1], [1, 0, 2, 1]]))[1], repeated.compute()
    assert expected.recall_at is not None and expected.stored is not None
    assert figures == pytest.approx(
        [*expected.recall_at, expected.score, expected.stored.recall, expected.stored.false_per_frame]
    )


def boxes(*corners: tuple[int, int, int, int], value: Any = 1) -> np.ndarray:
    """60×80 zeros with boxes (top, left, bottom, right) of a value."""
    array = np.zeros((60, 80), np.float32)
    for top, left, bottom, right in corners:
        array[top:bottom, left:right] = value
    return array


def test_alarms_are_told_apart_by_class_and_objects_by_size() -> None:
    target = boxes((0, 0, 10, 10), (0, 20, 10, 50)).astype(np.uint8)  # 100 and 300 pixels
    labels = boxes((30, 0, 60, 80)).astype(np.uint8)  # class 1 below, 0 above
    labels[:, 70:] = 255  # no known class
    metrics = ObjectMetrics(3, threshold=1.0)
    score = boxes((0, 20, 10, 30), (26, 0, 46, 10), (50, 20, 55, 30), value=1)
    metrics.update(score, target, labels, name="a.png")
    stored = metrics.compute().stored
    assert stored is not None
    assert (stored.recall, stored.false_per_frame) == (0.5, 1.0), "50 pixels are no object; a third is covered"
    assert stored.size_objects == (1, 1, 0, 0) and stored.size_recall == (0.0, 1.0, None, None)
    assert stored.class_pixels == (40 / (30 * 70 - 400), (160 + 50) / (30 * 70), None)
    assert stored.class_objects == (0.0, 1.0, 0.0)


def test_void_cuts_reports_before_the_size_limit() -> None:
    target = boxes((10, 10, 20, 20)).astype(np.uint8)
    target[:, 40] = 255
    metrics = ObjectMetrics(1, threshold=1.0)
    metrics.update(boxes((30, 35, 50, 44)), target, np.zeros((60, 80), np.uint8), name="a.png")
    stored = metrics.compute().stored
    assert stored is not None and stored.false_per_frame == 1.0, "100 pixels on the left, 60 on the right"


def test_what_is_reported_can_be_given() -> None:
    target, labels = boxes((10, 10, 20, 20)).astype(np.uint8), np.zeros((60, 80), np.uint8)
    metrics = ObjectMetrics(1, threshold=1.0)
    metrics.update(boxes((30, 30, 50, 50)), target, labels, name="a.png", stored=boxes((10, 10, 20, 20)) > 0)
    stored = metrics.compute().stored
    assert stored is not None and (stored.recall, stored.false_per_frame) == (1.0, 0.0)


def test_the_floor_ends_the_sweep() -> None:
    target, labels = boxes((10, 10, 20, 20)).astype(np.uint8), np.zeros((60, 80), np.uint8)
    for floor, recall in ((0.5, 1.0), (1.5, 0.0), (None, 0.0)):
        metrics = ObjectMetrics(1, floor=floor)
        metrics.update(boxes((10, 10, 20, 20)), target, labels, name="a.png")
        assert metrics.compute().recall_at == (recall,) * len(RATES)


def test_bad_input_names_the_frame() -> None:
    target, labels = boxes().astype(np.uint8), np.zeros((60, 80), np.uint8)
    metrics = ObjectMetrics(1, 0.5)
    with pytest.raises(PebalError, match=r"a\.png: 4800 of 4800 scores are NaN"):
        metrics.update(np.full_like(boxes(), np.nan), target, labels, name="a.png")
    with pytest.raises(PebalError, match=r"a\.png: the classes are 30×80"):
        metrics.update(boxes(), target, labels[:30], name="a.png")
    with pytest.raises(PebalError, match=r"a\.png: the reported pixels are 30×80"):
        metrics.update(boxes(), target, labels, name="a.png", stored=labels[:30] > 0)
    with pytest.raises(ValueError, match="cannot merge"):
        metrics.merge(ObjectMetrics(1, 0.6))
    assert metrics.compute().images == 0


def test_state_survives_a_file(tmp_path: Path) -> None:
    score, target = scene(1)
    metrics = ObjectMetrics(1, 1.5)
    metrics.update(score, target, np.zeros(target.shape, np.uint8), name="a.png")
    np.savez(tmp_path / "a.npz", **metrics.state_dict())  # type: ignore[arg-type]
    assert (tmp_path / "a.npz").stat().st_size < 10_000
    with np.load(tmp_path / "a.npz") as state:
        again = ObjectMetrics.from_state(state).compute()
    assert (again.recall_at, again.stored) == (metrics.compute().recall_at, metrics.compute().stored)


def test_a_large_image_takes_about_a_second() -> None:
    score, target = scene(0, (1024, 2048))
    metrics, started = ObjectMetrics(1, 1.5), time.process_time()
    metrics.update(score, target, np.zeros(target.shape, np.uint8), name="a.png")
    assert time.process_time() - started < 5, "a second, with room for a slow machine"
