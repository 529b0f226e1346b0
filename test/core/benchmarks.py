"""What the tests of the benchmark share: a model, images with labels, and an undisturbed run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pebal_core.benchmark.results import Results, SetResult
from pebal_core.commands.main import main
from pebal_core.model_file import save_model
from pebal_core.model_info import ModelInfo
from pebal_core.networks import build_network

TINY: dict[str, Any] = {"encoder": "resnet18", "decoder_channels": 16}
THRESHOLD = -3.028  # nats, within the energies of the network below
IMAGES = 10  # more than the 8 that become one archive


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(path, build_network("deeplabv3plus", **TINY), ModelInfo("deeplabv3plus", TINY, threshold=THRESHOLD))
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two sizes with bright objects, and one without any."""
    root = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        height, width = (64, 96) if number % 2 else (57, 70)
        image = rng.integers(0, 120, (height, width, 3), np.uint8)
        labels = np.zeros((height, width), np.uint8)
        labels[:8] = 255
        if number:
            top, left = rng.integers(10, 30, 2)
            labels[top : top + 24, left : left + 30] = 1
            image[labels == 1] = rng.integers(160, 256, 3)
        for folder, pixels in (("images", image), ("labels", labels)):
            (root / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(root / folder / f"{number}.png"), pixels)
    return root


@pytest.fixture(scope="module")
def results(model: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run of one process that others are compared with."""
    out = tmp_path_factory.mktemp("results")
    assert main(arguments(model, pairs, out)) == 0
    return out


def arguments(model: Path, pairs: Path, out: Path, *more: str) -> list[str]:
    return ["benchmark", f"--model={model}", f"--dataset=mine={pairs}", f"--out={out}", "--protocol=smiyc", *more]


def figures(out: Path) -> SetResult:
    """Everything of the set ``mine`` that does not depend on where and how long it ran."""
    result = Results.load(out).sets["mine"]
    info = replace(result.set, milliseconds={}, images_per_second=0.0, peak_memory_mb=0.0)
    return SetResult(info, result.scores, result.segmentation)
