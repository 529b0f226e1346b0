"""The detector in a hostile process: threads, forks, odd arrays, and an engine whose answer cannot be right."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pebal_core.detector import AnomalyDetector
from pebal_core.errors import EngineError, PebalError
from pebal_core.model_file import save_model
from pebal_core.model_info import ModelInfo
from pebal_core.networks import build_network

from .commands import refused

SMALL: dict[str, Any] = {"scale": 0.5}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_model(path, build_network("espnetv2", **SMALL), ModelInfo("espnetv2", SMALL))
    return path


@pytest.fixture(scope="module")
def detector(small: Path) -> AnomalyDetector:
    return AnomalyDetector.load(small, "torch", "cpu")


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_threads_share_a_detector(detector: AnomalyDetector) -> None:
    images = [noise(64 + 16 * (seed % 3), 96, seed) for seed in range(12)]
    expected = [detector(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for result, same in zip(pool.map(detector, images), expected, strict=True):
                assert np.array_equal(result.labels, same.labels) and np.array_equal(result.energy, same.energy)


def _in_a_fork(detector: AnomalyDetector, answer: Any) -> None:
    try:
        detector(noise(32, 32))
    except PebalError as error:
        answer.put(str(error))


def test_a_forked_process_is_told_to_load_its_own(detector: AnomalyDetector) -> None:
    detector(noise(32, 32))
    fork = multiprocessing.get_context("fork")
    answer = fork.SimpleQueue()
    process = fork.Process(target=_in_a_fork, args=(detector, answer))
    process.start()
    process.join(60)
    if process.is_alive():
        process.kill()
        pytest.fail("the forked process hangs")
    assert "loaded before this process was forked" in answer.get()


ARRAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "negative strides": lambda image: image[::-1, ::-1][::-1, ::-1],
    "reversed channels of a reversed copy": lambda image: np.ascontiguousarray(image[..., ::-1])[..., ::-1],
    "every second pixel": lambda image: np.repeat(np.repeat(image, 2, 0), 2, 1)[::2, ::2],
    "Fortran order": np.asfortranarray,
    "a broadcast": lambda image: np.broadcast_to(image, (2, *image.shape))[1],
    "a window": lambda image: np.pad(image, ((3, 3), (5, 5), (0, 1)))[3:-3, 5:-5, :3],
    "unaligned": lambda image: np.frombuffer(b"x" + image.tobytes(), np.uint8)[1:].reshape(image.shape),
    "a subclass": lambda image: image.view(np.ma.MaskedArray),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_any_layout(kind: str, detector: AnomalyDetector) -> None:
    image = noise(48, 64)
    odd = ARRAYS[kind](image)
    if odd.flags.writeable and odd.base is not None:
        odd.flags.writeable = False
    before = np.array(odd)
    for same in (detector(odd), detector([odd, odd])[1]):
        assert np.allclose(same.energy, detector(image).energy, atol=1e-4)
    assert np.array_equal(odd, before), "the image is the caller's"


BAD_ARRAYS: dict[str, Any] = {
    "floats": np.zeros((32, 32, 3), np.float32),
    "grey": np.zeros((32, 32), np.uint8),
    "RGBA": np.zeros((32, 32, 4), np.uint8),
    "empty": np.zeros((0, 0, 3), np.uint8),
    "flat": np.zeros((15, 900, 3), np.uint8),
    "16 bits": np.zeros((32, 32, 3), np.uint16),
    "objects": np.zeros((32, 32, 3), object),
    "a number": np.array(3, np.uint8),
    "two sizes": [np.zeros((32, 32, 3), np.uint8), np.zeros((32, 48, 3), np.uint8)],
    "no array": ["image"],
    "None": [None],
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_what_is_no_image_is_refused(kind: str, detector: AnomalyDetector) -> None:
    with pytest.raises(PebalError) as refusal:
        detector(BAD_ARRAYS[kind])
    assert not isinstance(refusal.value, EngineError)


@pytest.mark.parametrize(
    "size", [(0, 5), (1, 1), (-1, -1), (15, 64), (64, 8193), (10**9, 10**9), (15,), (64, 64, 64), (64.0, 64), "64"]
)
def test_every_input_size_has_its_range(size: Any, small: Path) -> None:
    with pytest.raises(PebalError, match="input size"):
        AnomalyDetector.load(small, "torch", "cpu", input_size=size)


# ---- an answer that cannot be right ----


def overflowing(path: Path) -> Path:
    """A model of finite weights whose energies are not."""
    network = build_network("espnetv2", **SMALL).eval()
    with torch.no_grad():
        for layer in ("bu_dec_l4.merge_layer.3.weight", "bu_dec_l4.projection_layer.cbr.0.weight"):
            network.get_parameter(layer).mul_(1e30)
    save_model(path, network, ModelInfo("espnetv2", SMALL))
    return path


def test_energies_that_overflow_are_an_engine_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = overflowing(tmp_path / "m.safetensors")
    with pytest.raises(EngineError, match="energies are not finite"):
        AnomalyDetector.load(path, "torch", "cpu")(noise(64, 64))
    cv2.imwrite(str(tmp_path / "image.png"), noise(64, 64))
    out = tmp_path / "out"
    sentence = refused(
        ["predict", str(tmp_path / "image.png"), f"--model={path}", f"--out={out}", "--threshold=0"], capsys
    )
    assert "energies are not finite" in sentence
    assert not any(path.stat().st_size for path in out.rglob("*.*")), "nothing of it is a result"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_energy_that_is_not_finite(value: float, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = AnomalyDetector.load(small, "torch", "cpu")
    run = type(detector.engine).__call__

    def spoiled(self: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels, energy = run(self, images)
        energy[-1, 3, 5] = value
        return labels, energy

    monkeypatch.setattr(type(detector.engine), "__call__", spoiled)
    with pytest.raises(EngineError, match="1 of 8192 energies are not finite"):
        detector([noise(64, 64), noise(64, 64, 1)])


def test_an_answer_of_another_shape(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = AnomalyDetector.load(small, "torch", "cpu")
    run = type(detector.engine).__call__
    monkeypatch.setattr(
        type(detector.engine), "__call__", lambda self, images: tuple(a[:, 1:] for a in run(self, images))
    )
    with pytest.raises(EngineError, match="The engine returned"):
        detector(noise(64, 64))
