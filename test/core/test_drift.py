"""Drift: the test keeps its level at any time, and real changes are named within seconds."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pebal_core.drift import DriftMonitor, Gambler, features, make_profile
from pebal_core.errors import PebalError
from pebal_core.model_info import ModelInfo


def frame(number: int) -> np.ndarray:
    """Grain that moves over a bright sky and a grey road, 96×160."""
    rng = np.random.default_rng(number)
    image = np.full((96, 160, 3), 110, np.uint8)
    image[:40] = 190
    return (image + rng.normal(0, 12, image.shape)).clip(0, 255).astype(np.uint8)


def energy(number: int, share: float = 0.005) -> np.ndarray:
    values = np.random.default_rng([1, number]).random((96, 160)).astype(np.float32)
    return np.where(values < share, np.float32(0), np.float32(-10))


@pytest.fixture
def info() -> ModelInfo:
    seen = [features(frame(n)) for n in range(30)]
    profile = make_profile({"a": [0.004] * 15, "b": [0.006] * 15}, seen, 0.05)
    return ModelInfo("deeplabv3plus", threshold=-5.0, profile=profile.as_dict())


def test_the_level_holds_at_any_time() -> None:
    rng = np.random.default_rng(0)
    wealth = []
    for _ in range(400):
        gambler = Gambler(0.1)
        wealth.append(max(gambler.bet(float(value)) for value in rng.random(500) < 0.1))
    assert np.mean(np.array(wealth) >= 20) <= 0.05
    assert max(Gambler(0.1).bet(1.0) for _ in range(3)) > 1


def test_the_same_drive_raises_nothing(info: ModelInfo) -> None:
    monitor = DriftMonitor(info)
    states = [monitor.update(energy(n), frame(n)) for n in range(100, 700)]
    assert not any(state.drifted for state in states) and states[-1].text == "The guarantee holds."


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda image: (image * 0.3).astype(np.uint8), "night"),
        (lambda image: (0.2 * image + 140).astype(np.uint8), "fog"),
        (lambda image: cv2.GaussianBlur(image, (0, 0), 3), "blur"),
        (lambda image: cv2.convertScaleAbs(image, alpha=1.6), "glare"),
    ],
)
def test_a_change_of_the_images_is_named(info: ModelInfo, change: object, word: str) -> None:
    monitor = DriftMonitor(info)
    for n in range(100, 400):
        monitor.update(energy(n), frame(n))
    late = [monitor.update(energy(n), change(frame(n))) for n in range(400, 480)]  # type: ignore[operator]
    assert late[-1].drifted and word in late[-1].text
    assert next(n for n, state in enumerate(late) if state.drifted) < 75


def test_alarms_in_one_place_are_dirt_and_elsewhere_another_place(info: ModelInfo) -> None:
    dirty, other = DriftMonitor(info), DriftMonitor(info)
    for n in range(200):
        spot = energy(n)
        spot[20:50, 30:70] = 0
        dirt = dirty.update(spot, frame(n))
        place = other.update(energy(n, 0.1), frame(n))
    assert dirt.drifted and "dirty" in dirt.text
    assert place.drifted and "another place" in place.text


def test_without_a_profile() -> None:
    with pytest.raises(PebalError, match="pebal calibrate"):
        DriftMonitor(ModelInfo("deeplabv3plus"))


@pytest.mark.parametrize("profile", [{"x": 1}, {"alarmed": 0, "bound": 1, "low": [], "high": [], "frames": 1}], ids=str)
def test_a_damaged_profile_is_one_sentence(profile: dict[str, object]) -> None:
    with pytest.raises(PebalError, match="profile in the model file is damaged"):
        DriftMonitor(ModelInfo("deeplabv3plus", threshold=0.0, profile=profile))
