"""Component metrics follow the definitions, pixel set by pixel set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label  # type: ignore[import-untyped]

from pebal_core.errors import PebalError
from pebal_core.metrics.components import TAUS, ComponentMetrics

Pixels = set[tuple[int, int]]


def component_sets(mask: np.ndarray) -> list[Pixels]:
    """The 8-connected components of a mask as sets of (row, column)."""
    numbers, _ = label(mask, np.ones((3, 3)))
    return [{(int(y), int(x)) for y, x in np.argwhere(numbers == i)} for i in range(1, numbers.max() + 1)]


def by_definition(
    predicted: np.ndarray, target: np.ndarray, smallest_prediction: int, smallest_object: int
) -> tuple[list[float], list[float]]:
    """sIoU of each object and PPV of each prediction, in the words of the definition."""
    objects = component_sets(target == 1)
    predictions = [p for p in component_sets(predicted & (target < 2)) if len(p) >= smallest_prediction]
    void = set().union(*(k for k in objects if len(k) < smallest_object))
    objects = [k for k in objects if len(k) >= smallest_object]
    predictions = [p - void for p in predictions if p - void]
    everything = set().union(*objects)
    siou = []
    for k in objects:
        reached = set().union(*(p for p in predictions if p & k))
        siou.append(len(k & reached) / len((k | reached) - (everything - k)))
    return siou, [len(p & everything) / len(p) for p in predictions]


masks = (
    st.integers(0, 2**32 - 1)
    .map(np.random.default_rng)
    .map(
        lambda generator: (
            generator.random((12, 14)) < generator.choice([0.15, 0.4, 0.6]),
            generator.choice(np.array([0, 0, 1, 255], np.uint8), (12, 14), p=generator.dirichlet([3, 3, 3, 1])),
        )
    )
)


@settings(max_examples=80, deadline=None)
@given(st.lists(masks, min_size=1, max_size=3), st.integers(1, 6), st.integers(1, 4))
def test_equals_the_definition(
    frames: list[tuple[np.ndarray, np.ndarray]], smallest_prediction: int, smallest_object: int
) -> None:
    metrics, rest = (ComponentMetrics(0.5, smallest_prediction, smallest_object) for _ in range(2))
    siou: list[float] = []
    ppv: list[float] = []
    for i, (predicted, target) in enumerate(frames):
        (metrics if i % 2 else rest).update(predicted.astype(np.float32), target, name=f"{i}.png")
        frame_siou, frame_ppv = by_definition(predicted, target, smallest_prediction, smallest_object)
        siou += frame_siou
        ppv += frame_ppv
    metrics.merge(ComponentMetrics.from_state(rest.state_dict()))
    result = metrics.compute()

    assert (result.images, result.objects, result.predictions) == (len(frames), len(siou), len(ppv))
    if not siou:
        assert result.undefined is not None
        assert (result.siou, result.ppv, result.f1) == (None, None, None)
        return
    assert result.siou == pytest.approx(np.mean(siou))
    assert result.ppv == (pytest.approx(np.mean(ppv)) if ppv else None)
    f1 = []
    for tau in TAUS:
        tp, fp = sum(s >= tau for s in siou), sum(p < tau for p in ppv)
        f1.append(2 * tp / (2 * tp + (len(siou) - tp) + fp))
    assert result.f1_at_taus == pytest.approx(f1)
    assert result.f1 == pytest.approx(np.mean(f1))


def frame(*boxes: tuple[int, int, int, int], value: float = 1) -> np.ndarray:
    """60×80 zeros with boxes (top, left, bottom, right) of a value."""
    array = np.zeros((60, 80), np.float32)
    for top, left, bottom, right in boxes:
        array[top:bottom, left:right] = value
    return array


def test_one_prediction_over_two_objects_harms_neither() -> None:
    metrics = ComponentMetrics(0.5, 50, 10)
    target = frame((10, 10, 20, 20), (10, 30, 20, 40))
    metrics.update(frame((10, 10, 20, 40)), target.astype(np.uint8), name="a.png")
    result = metrics.compute()
    assert result.siou == pytest.approx(100 / 200)  # of the union, the gap between the objects is left
    assert result.ppv == pytest.approx(200 / 300)


def test_corners_connect() -> None:
    metrics = ComponentMetrics(0.5, 1, 1)
    target = frame((0, 0, 10, 10), (10, 10, 20, 20)).astype(np.uint8)
    metrics.update(frame((0, 0, 10, 10)), target, name="a.png")
    assert (metrics.compute().objects, metrics.compute().siou) == (1, 0.5)


def test_void_cuts_predictions_before_the_size_limit() -> None:
    target = frame((10, 10, 20, 20), value=1).astype(np.uint8)
    target[:, 40] = 255
    metrics = ComponentMetrics(0.5, 50, 10)
    metrics.update(frame((30, 37, 40, 45)), target, name="a.png")  # 80 pixels, of which void leaves 30 and 40
    result = metrics.compute()
    assert (result.predictions, result.ppv, result.siou, result.f1) == (0, None, 0.0, 0.0)


def test_small_objects_neither_reward_nor_harm() -> None:
    metrics = ComponentMetrics(0.5, 50, 10)
    target = frame((10, 10, 20, 20), (40, 40, 43, 43)).astype(np.uint8)
    metrics.update(frame((10, 10, 20, 20), (38, 38, 48, 48)), target, name="a.png")
    result = metrics.compute()
    assert (result.objects, result.predictions, result.siou) == (1, 2, 1.0)
    assert result.ppv == 0.5


def test_the_threshold_itself_is_an_anomaly() -> None:
    metrics = ComponentMetrics(-7.1, 1, 1)
    target = frame((10, 10, 20, 20)).astype(np.uint8)
    metrics.update(frame((10, 10, 20, 20)) * np.float32(92.9) - np.float32(100), target, name="a.png")
    score = np.where(target == 1, np.float32(-7.1), np.float32(-20))
    metrics.update(score, target, name="b.png")
    assert metrics.compute().siou == 1.0


def test_bad_input_names_the_frame() -> None:
    metrics = ComponentMetrics(0.5)
    target = frame().astype(np.uint8)
    with pytest.raises(PebalError, match=r"a\.png: 4800 of 4800 scores are NaN"):
        metrics.update(np.full_like(frame(), np.nan), target, name="a.png")
    with pytest.raises(PebalError, match=r"a\.png: .* 60×80 .* 30×80"):
        metrics.update(frame(), target[:30], name="a.png")
    with pytest.raises(ValueError, match="cannot merge"):
        metrics.merge(ComponentMetrics(0.6))
    assert metrics.compute().images == 0


def test_state_survives_a_file(tmp_path: Path) -> None:
    metrics = ComponentMetrics(0.5, 50, 10)
    target = frame((10, 10, 20, 20), (10, 30, 20, 40)).astype(np.uint8)
    metrics.update(frame((12, 10, 20, 40)), target, name="a.png")
    np.savez(tmp_path / "a.npz", **metrics.state_dict())  # type: ignore[arg-type]
    with np.load(tmp_path / "a.npz") as state:
        assert ComponentMetrics.from_state(state).compute() == metrics.compute()
