"""The detector: sizes, batches, scores and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pebal_core.detector import AnomalyDetector
from pebal_core.errors import PebalError
from pebal_core.model_file import file_sha256, load_model, save_model
from pebal_core.model_info import ModelInfo
from pebal_core.networks import build_network

TINY: dict[str, Any] = {"encoder": "resnet18", "decoder_channels": 16}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(path, build_network("deeplabv3plus", **TINY), ModelInfo("deeplabv3plus", TINY))
    return path


@pytest.fixture(scope="module")
def detector(model_path: Path) -> AnomalyDetector:
    return AnomalyDetector.load(model_path, device="cpu")


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (17, 33), (100, 31)])
def test_any_size_comes_back_at_its_own_size(detector: AnomalyDetector, size: tuple[int, int]) -> None:
    result = detector(noise(*size))
    assert result.labels.shape == result.energy.shape == size
    assert result.labels.dtype == np.uint8 and result.energy.dtype == np.float32
    assert result.labels.max() < 19 and np.isfinite(result.energy).all()


def test_labels_and_energy_follow_their_definitions(detector: AnomalyDetector, model_path: Path) -> None:
    """Energy = -logsumexp of the 19 inlier logits, then a 7×7 Gaussian of sigma 1 with reflected borders."""
    image = noise(48, 64)
    network, info = load_model(model_path)
    pixels = (torch.from_numpy(image).double() / 255 - torch.tensor(info.mean)) / torch.tensor(info.std)
    with torch.no_grad():
        logits = network(pixels.float().permute(2, 0, 1)[None])[:, :19].double()
    offsets = torch.arange(-3, 4, dtype=torch.float64)
    taps = torch.exp(-(offsets**2) / 2)
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    energy = -torch.log(logits.exp().sum(dim=1, keepdim=True))
    blurred = F.conv2d(F.pad(energy, (3, 3, 3, 3), mode="reflect"), kernel[None, None])[0, 0]
    result = detector(image)
    np.testing.assert_allclose(result.energy, blurred.numpy(), atol=1e-4)
    assert (result.labels == logits[0].argmax(dim=0).numpy()).mean() > 0.999


def test_a_batch_equals_its_images(detector: AnomalyDetector) -> None:
    images = [noise(48, 64, seed) for seed in range(3)]
    for image, result in zip(images, detector(images), strict=True):
        alone = detector(image)
        np.testing.assert_allclose(result.energy, alone.energy, atol=1e-4)
        assert (result.labels == alone.labels).mean() > 0.999
    assert detector([]) == []


def test_smoothing_and_input_size_are_options(model_path: Path) -> None:
    image = noise(64, 96)
    rough = AnomalyDetector.load(model_path, smoothing=False)(image).energy
    smooth = AnomalyDetector.load(model_path, smoothing=True)(image).energy
    assert np.abs(np.diff(rough)).mean() > np.abs(np.diff(smooth)).mean()
    resized = AnomalyDetector.load(model_path, input_size=(32, 48))(image)
    assert resized.labels.shape == resized.energy.shape == (64, 96)


def test_it_says_what_it_is(detector: AnomalyDetector, model_path: Path) -> None:
    detector.warm_up(32, 48)
    assert (detector.engine_name, detector.device_name) == ("torch", "cpu")
    assert detector.model_sha256 == file_sha256(model_path)
    assert set(detector.timings) == {"preprocess", "inference", "postprocess"}
    assert all(seconds > 0 for seconds in detector.timings.values())


def test_the_image_is_not_modified_and_may_be_read_only(detector: AnomalyDetector) -> None:
    image = noise(48, 64)
    before = image.copy()
    image.setflags(write=False)
    detector(image)
    detector(image[:, ::-1])
    assert (image == before).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((48, 64, 3), np.float32), "H×W×3 uint8 RGB"),
        (np.zeros((48, 64), np.uint8), "H×W×3 uint8 RGB"),
        (np.zeros((48, 64, 4), np.uint8), "H×W×3 uint8 RGB"),
        (np.zeros((8, 64, 3), np.uint8), "at least 16 pixels"),
    ],
)
def test_wrong_images_are_refused(detector: AnomalyDetector, image: np.ndarray, message: str) -> None:
    with pytest.raises(PebalError, match=message):
        detector(image)


def test_images_of_two_sizes_are_no_batch(detector: AnomalyDetector) -> None:
    with pytest.raises(PebalError, match="must have one size"):
        detector([noise(48, 64), noise(64, 48)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "tensorflow"}, "There is no engine 'tensorflow'"),
        ({"precision": "int4"}, "There is no precision 'int4'"),
        ({"device": "cuda:7"}, "'cuda:7' is not available"),
        ({"device": "tpu"}, "There is no device 'tpu'"),
    ],
)
def test_what_cannot_be_had_is_an_error(model_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(PebalError, match=message):
        AnomalyDetector.load(model_path, **options)  # type: ignore[arg-type]
