"""Networks against the outputs of the public implementations, and of the plain one of these tests."""

from __future__ import annotations

from ast import literal_eval
from pathlib import Path

import numpy as np
import pytest
import torch

from pebal_core.checkpoints import load_checkpoint
from pebal_core.networks import SegmentationNetwork, build_network
from pebal_core.scores import free_energy, gaussian_blur

from .reference import deviation, every_file, wide_resnet38_weights

TOLERANCE = 1e-3
"""Of the standard deviation; float32."""


@pytest.fixture(scope="module")
def wide_resnet38() -> SegmentationNetwork:
    with torch.device("meta"):
        network = build_network("deeplabv3plus_wide_resnet38")
    return network.to_empty(device="cpu").eval()


@pytest.fixture(scope="module")
def espnetv2(shared_dir: Path) -> SegmentationNetwork:
    return load_checkpoint(shared_dir / "weights/espnetv2_s_2.0_city_1024x512.pth")[0]


@pytest.mark.slow
@every_file("wr38_forward_seed*.npz")
def test_wide_resnet38_logits_and_score(path: Path, wide_resnet38: SegmentationNetwork) -> None:
    reference = np.load(path)
    wide_resnet38.load_state_dict(wide_resnet38_weights(reference))
    with torch.inference_mode():
        logits = wide_resnet38(torch.from_numpy(reference["image"]))
        score = gaussian_blur(free_energy(logits))
    stride = int(reference["logit_stride"]) if "logit_stride" in reference else 1
    assert deviation(logits[..., ::stride, ::stride], reference["logits"]) <= TOLERANCE
    assert deviation(score, reference["anomaly_score"].reshape(score.shape)) <= TOLERANCE


@every_file("wr38_forward_seed*.npz")
def test_wide_resnet38_names_and_shapes(path: Path, wide_resnet38: SegmentationNetwork) -> None:
    reference = np.load(path)
    expected = dict(zip(reference["keys"].tolist(), map(literal_eval, reference["shapes"].tolist()), strict=True))
    ours = {f"branch1.{name}": tuple(tensor.shape) for name, tensor in wide_resnet38.state_dict().items()}
    assert ours == expected


@pytest.mark.slow
@every_file("wr38_forward_seed*.npz", at_most=1)
def test_wide_resnet38_batch(path: Path, wide_resnet38: SegmentationNetwork) -> None:
    """An image's logits and score do not depend on its neighbours in the batch."""
    reference = np.load(path)
    wide_resnet38.load_state_dict(wide_resnet38_weights(reference))
    image = torch.from_numpy(reference["image"])
    with torch.inference_mode():
        logits = wide_resnet38(torch.cat([image.flip(-1), image]))
        score = gaussian_blur(free_energy(logits))
    count = len(image)
    stride = int(reference["logit_stride"]) if "logit_stride" in reference else 1
    assert deviation(logits[count:, :, ::stride, ::stride], reference["logits"]) <= TOLERANCE
    assert deviation(score[count:], reference["anomaly_score"].reshape(score[count:].shape)) <= TOLERANCE


@every_file("espnetv2*_forward.npz")
def test_espnetv2_at_every_level(path: Path, espnetv2: SegmentationNetwork) -> None:
    reference = np.load(path)
    pixels = torch.from_numpy(reference["image_rgb_uint8"]).reshape(-1, *reference["image_rgb_uint8"].shape[-3:])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = ((pixels / 255 - mean) / std).movedim(-1, 1)
    with torch.inference_mode():
        features = espnetv2.trunk(images)
        outputs = {f"level{i}": feature for i, feature in enumerate(features, start=1)}
        outputs |= {"decoder_stride2": espnetv2.head(features), "logits": espnetv2(images)}
    deviations = {name: deviation(value, reference[name]) for name, value in outputs.items()}
    assert max(deviations.values()) <= TOLERANCE, deviations
