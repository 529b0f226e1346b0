"""Pooled pixel metrics equal scikit-learn's on the concatenated pixels, however they were accumulated."""

from __future__ import annotations

import doctest
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from pebal_core.errors import PebalError
from pebal_core.metrics import pages, pooled, score_counts
from pebal_core.metrics.pooled import FPR95_DEFINITIONS, PooledMetrics, PooledResult

Frame = tuple[np.ndarray, np.ndarray]

any_score = st.floats(width=32, allow_nan=False, allow_infinity=True)
tied_score = st.sampled_from([-12.0, -11.5, -0.0, 0.0, 3.25, float("inf"), float("-inf")])


@st.composite
def frames(draw: st.DrawFn) -> list[Frame]:
    """One to five small frames of arbitrary, often tied scores and labels with void."""
    result = []
    for _ in range(draw(st.integers(1, 5))):
        pixels = draw(st.lists(st.tuples(any_score | tied_score, st.sampled_from([0, 0, 1, 2, 255])), max_size=40))
        score = np.array([s for s, _ in pixels], np.float32).reshape(1, -1)
        result.append((score, np.array([t for _, t in pixels], np.uint8).reshape(1, -1)))
    return result


def energies(seed: int, height: int = 64, width: int = 128) -> Frame:
    """A frame like a network's: inliers around -11, outliers higher, a band of void."""
    generator = np.random.default_rng(seed)
    target = np.zeros((height, width), np.uint8)
    target[height // 4 : height // 2, : width // 8] = 1
    target[-height // 8 :] = 255
    score = generator.normal(-11, 2.5, (height, width)) + 4 * (target == 1)
    return score.astype(np.float32), target


def accumulate(frames: list[Frame]) -> PooledMetrics:
    metrics = PooledMetrics()
    for i, (score, target) in enumerate(frames):
        metrics.update(score, target, name=f"{i}.png")
    return metrics


def labelled(frames: list[Frame]) -> Frame:
    """All labelled pixels, 1-D: scores, labels."""
    score = np.concatenate([score.ravel() for score, _ in frames])
    target = np.concatenate([target.ravel() for _, target in frames])
    return score[target < 2], target[target < 2]


def assert_as_scikit_learn(result: PooledResult, score: np.ndarray, target: np.ndarray) -> None:
    # scikit-learn refuses infinite scores; the metrics depend on the order alone.
    values, rank = np.unique(score, return_inverse=True)
    fpr, tpr, thresholds = roc_curve(target, rank, drop_intermediate=False)
    assert result.undefined is None
    assert (result.inliers, result.outliers) == (np.sum(target == 0), np.sum(target == 1))
    assert result.auroc == pytest.approx(roc_auc_score(target, rank), abs=1e-9)
    assert result.ap == pytest.approx(average_precision_score(target, rank), abs=1e-9)

    assert result.fpr95_definitions is not None
    assert result.fpr95_definitions.keys() == FPR95_DEFINITIONS.keys()
    first = np.flatnonzero(tpr >= 0.95)[0]
    assert result.fpr95 == result.fpr95_definitions["first_at_least"] == pytest.approx(fpr[first], abs=1e-12)
    assert result.fpr95_threshold == values[int(thresholds[first])]
    assert result.fpr95_definitions["first_above"] == pytest.approx(fpr[tpr > 0.95][0], abs=1e-12)
    # The rule of the anomaly segmentation codes: from the first full recall back, the first nearest recall.
    back = slice(int(np.argmax(tpr == 1)), 0, -1)
    nearest = np.argmin(np.abs(tpr[back] - 0.95))
    assert result.fpr95_definitions["nearest"] == pytest.approx(fpr[back][nearest], abs=1e-12)
    assert result.fpr95_definitions["bins100"] == pytest.approx(fpr_of_histograms(score, target), abs=1e-12)

    precision, recall, _ = precision_recall_curve(target, rank)
    f1 = np.divide(2 * precision * recall, precision + recall, where=recall > 0, out=np.zeros_like(recall))
    assert result.best_f1 == pytest.approx(f1.max(), abs=1e-9)
    assert result.best_f1_threshold is not None
    assert f1_score(target, score >= np.float32(result.best_f1_threshold)) == pytest.approx(result.best_f1)


def fpr_of_histograms(score: np.ndarray, target: np.ndarray) -> float:
    finite = score[np.isfinite(score)]
    low, high = (finite.min(), finite.max()) if len(finite) else (np.float32(0), np.float32(0))
    edges = np.linspace(float(low), float(high), 101).astype(np.float32)
    counts = []
    for label in (0, 1):
        ascending = np.sort(score[target == label])
        at_least = len(ascending) - np.searchsorted(ascending, edges[:-1])
        at_least[0] = len(ascending)
        counts.append(at_least[::-1] / at_least[0])
    return float(counts[0][np.argmin(np.abs(counts[1] - 0.95))])


@settings(max_examples=60, deadline=None)
@given(frames())
def test_equals_scikit_learn_for_any_scores(frames: list[Frame]) -> None:
    score, target = labelled(frames)
    result = accumulate(frames).compute()
    assert result.images == len(frames)
    if len(set(target.tolist())) == 2:
        assert_as_scikit_learn(result, score, target)
    else:
        assert result.undefined is not None


@settings(max_examples=30, deadline=None)
@given(frames(), frames(), frames())
def test_merging_gives_the_same_in_any_order_and_after_saving(a: list[Frame], b: list[Frame], c: list[Frame]) -> None:
    together = accumulate(a + b + c).compute()
    left, right = accumulate(c), accumulate(b)
    right.merge(accumulate(a))
    left.merge(PooledMetrics.from_state(right.state_dict()))
    merged = PooledMetrics.from_state(left.state_dict()).compute()
    assert merged.to_dict() == together.to_dict()


def test_the_largest_number_is_a_score() -> None:
    score = np.array([[0.0, np.finfo(np.float32).max]], np.float32)
    assert accumulate([(score, np.array([[0, 1]], np.uint8))]).compute().auroc == 1


@pytest.mark.parametrize("stretch", [1, 1000, 1 << 19])
def test_many_frames_in_several_generations_of_runs(stretch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_counts, "_RUNS_PER_LEVEL", 3)
    monkeypatch.setattr(pages, "_STRETCH", stretch)
    all_frames = [energies(seed, 16, 32) for seed in range(14)]
    assert_as_scikit_learn(accumulate(all_frames).compute(), *labelled(all_frames))


@pytest.mark.parametrize("distinct", [1, 40, 5000])
def test_crowded_scores_become_tables_of_counts(distinct: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few scores of up to 100,000 pixels each: counts of 1, 2 and 4 bytes, and a file that stops growing."""
    monkeypatch.setattr(score_counts, "_RUNS_PER_LEVEL", 2)
    generator = np.random.default_rng(distinct)
    scores = [-8 - generator.integers(0, distinct, (50, 1000)).astype(np.float32) / 2**20 for _ in range(6)]
    all_frames = [(score, (generator.random(score.shape) < 0.2).astype(np.uint8)) for score in scores]
    metrics = accumulate(all_frames)
    assert_as_scikit_learn(metrics.compute(), *labelled(all_frames))
    state = metrics.state_dict()
    assert state["widths"].max() > 0
    assert state["payload"].nbytes <= 4 * pages.PAGE * len(state["pages"])
    metrics.merge(PooledMetrics.from_state(state))
    assert_as_scikit_learn(metrics.compute(), *labelled(all_frames * 2))


def test_counts_beyond_32_bits() -> None:
    """A score that 2^33 inlier pixels share, as after many frames: state of 8-byte counts, written and merged."""
    table = np.zeros(pages.PAGE, np.uint64)
    key = int(pages.score_keys(np.array([-8.0], np.float32))[0])
    table[key & 0xFFFF] = 2**33
    state = {
        "images": np.array(5000),
        "pages": np.array([key >> 16]),
        "pixels": np.array([2**33]),
        "widths": np.array([8]),
        "payload": table.view(np.uint8),
    }
    metrics = accumulate([(np.array([[-7.0, -8.0, -9.0]], np.float32), np.array([[0, 1, 1]]))])
    metrics.merge(PooledMetrics.from_state(state))
    result = PooledMetrics.from_state(metrics.state_dict()).compute()
    assert (result.images, result.inliers, result.outliers) == (5001, 2**33 + 1, 2)
    assert result.auroc == pytest.approx((2**33 / 2) / (2 * (2**33 + 1)), abs=1e-12)
    assert result.fpr95 == 1.0


def test_numbers_of_pixels_at_thresholds() -> None:
    all_frames = [energies(seed) for seed in range(3)]
    score, target = labelled(all_frames)
    thresholds = np.array([-np.inf, -30, -11, *score[:50], -0.0, 5, 1e30, np.inf], np.float32)
    expected = [[np.sum(score[target == label] >= t) for t in thresholds] for label in (0, 1)]
    np.testing.assert_array_equal(accumulate(all_frames).at_least(thresholds), expected)


def test_curve_follows_every_operating_point() -> None:
    all_frames = [energies(seed) for seed in range(4)]
    score, target = labelled(all_frames)
    result = accumulate(all_frames).compute()
    curve = result.curve
    assert curve is not None
    assert len(curve.fpr) < 2000
    assert np.all(np.diff(curve.fpr) >= 0)
    assert np.all(np.diff(curve.tpr) >= 0)
    assert (curve.tpr[0], curve.fpr[0], curve.precision[0], curve.tpr[-1], curve.fpr[-1]) == (0, 0, 1, 1, 1)
    area = np.sum(np.diff(curve.fpr) * (curve.tpr[1:] + curve.tpr[:-1]) / 2)
    assert area == pytest.approx(result.auroc, abs=1e-3)
    for at in range(0, len(curve.fpr), 50):
        alarm = score >= np.float32(curve.threshold[at])
        assert curve.tpr[at] == np.mean(alarm[target == 1])
        assert curve.fpr[at] == np.mean(alarm[target == 0])
        if alarm.any():
            assert curve.precision[at] == np.mean(target[alarm])


def test_images_without_anomaly_count() -> None:
    clean = energies(1)[0], np.zeros((64, 128), np.uint8)
    all_frames = [energies(0), clean]
    result = accumulate(all_frames).compute()
    assert_as_scikit_learn(result, *labelled(all_frames))
    assert result.images == 2


@pytest.mark.parametrize(
    ("value", "reason"),
    [(0, "no outlier pixel"), (1, "no inlier pixel"), (255, "no inlier pixel .* outlier pixel")],
)
def test_one_class_yields_the_reason_and_no_figure(value: int, reason: str) -> None:
    score, target = energies(0)
    result = accumulate([(score, np.full_like(target, value))]).compute()
    assert result.undefined is not None
    assert re.search(reason, result.undefined)
    figures = result.auroc, result.ap, result.fpr95, result.fpr95_definitions, result.best_f1, result.curve
    assert figures == (None,) * 6


def test_no_frames() -> None:
    assert PooledMetrics().compute().undefined is not None
    assert PooledMetrics.from_state(PooledMetrics().state_dict()).compute().images == 0


@pytest.mark.parametrize("label", [0, 255])
def test_nan_is_refused_with_the_name(label: int) -> None:
    score, target = energies(0)
    score[3, 4], target[3, 4] = np.nan, label
    metrics = PooledMetrics()
    with pytest.raises(PebalError, match=r"frame_7\.png: 1 of 8192 scores are NaN"):
        metrics.update(score, target, name="frame_7.png")
    assert metrics.compute().images == 0


def test_sizes_that_differ_are_refused_with_the_name() -> None:
    score, target = energies(0)
    with pytest.raises(PebalError, match=r"a\.png: .* 64×128 .* 32×128"):
        PooledMetrics().update(score, target[:32], name="a.png")


def test_other_float_types_are_refused() -> None:
    score, target = energies(0)
    with pytest.raises(TypeError, match="float64"):
        PooledMetrics().update(score.astype(np.float64), target, name="a.png")


def test_a_state_is_not_merged_into_itself() -> None:
    metrics = accumulate([energies(0)])
    with pytest.raises(ValueError, match="into themselves"):
        metrics.merge(metrics)


def test_saved_state_is_compact(tmp_path: Path) -> None:
    score, target = energies(0, 512, 512)
    metrics = accumulate([(score, target)])
    np.savez(tmp_path / "frame.npz", **metrics.state_dict())  # type: ignore[arg-type]
    labelled_pixels = np.sum(target < 2)
    assert (tmp_path / "frame.npz").stat().st_size < 2 * labelled_pixels + 50_000
    with np.load(tmp_path / "frame.npz") as state:
        assert PooledMetrics.from_state(state).compute().to_dict() == metrics.compute().to_dict()


def test_memory_does_not_grow_with_the_number_of_frames() -> None:
    def peak(count: int) -> int:
        score, target = energies(0, 256, 256)
        tracemalloc.start()
        try:
            metrics = PooledMetrics()
            for i in range(count):
                metrics.update(score + np.float32(i), target, name="")
            metrics.compute()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)  # imports and caches
    assert peak(66) < 1.5 * peak(33) < 60e6


def test_full_disk_is_named() -> None:
    level = pages.Level()
    with Path("/dev/full").open("r+b") as level.file, pytest.raises(PebalError, match="Set TMPDIR"):
        level.append([bytes(100_000)], [0], [50_000], [0])


def test_the_example_in_the_documentation() -> None:
    assert doctest.testmod(pooled) == (0, 5)
