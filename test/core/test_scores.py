"""Scores beside their definitions in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from pebal_core.scores import SCORES, MaxLogitStatistics, anomaly_scores, free_energy, gaussian_blur

MEAN, DEVIATION = torch.linspace(-1, 1, 7), torch.linspace(0.5, 2, 7)


def logits(scale: float = 3.0) -> Tensor:
    return scale * torch.randn(2, 8, 5, 6, generator=torch.Generator().manual_seed(0))


def definitions(logits: Tensor) -> dict[str, Tensor]:
    f = logits[:, :-1].double()
    p, (highest, label) = f.softmax(dim=1), f.max(dim=1)
    return {
        "energy": -torch.logsumexp(f, dim=1),
        "msp": 1 - p.amax(dim=1),
        "max_logit": -highest,
        "entropy": -(p * p.log()).sum(dim=1),
        "sml": -(highest - MEAN.double()[label]) / DEVIATION.double()[label],
    }


@pytest.mark.parametrize("name", SCORES)
def test_scores_follow_their_definitions(name: str) -> None:
    found = anomaly_scores(logits(), [name], (MEAN, DEVIATION))[name]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), definitions(logits())[name], rtol=1e-5, atol=1e-6)


def test_the_abstention_channel_enters_no_score() -> None:
    changed = logits()
    changed[:, -1] += 100
    one, other = (anomaly_scores(f, list(SCORES), (MEAN, DEVIATION)) for f in (logits(), changed))
    assert all(torch.equal(one[name], other[name]) for name in SCORES)


def test_certain_pixels_keep_their_order() -> None:
    """1 - 0.99999999 is 0 in float32, and thousands of pixels would tie."""
    certain = torch.zeros(1, 4, 1, 3)
    certain[0, 0, 0] = torch.tensor([20.0, 25.0, 30.0])
    for name in ("msp", "entropy"):
        score = anomaly_scores(certain, [name])[name][0, 0]
        assert score[0] > score[1] > score[2] > 0
        torch.testing.assert_close(score[0].double(), definitions(certain)[name][0, 0, 0], rtol=1e-4, atol=0)


def test_energy_is_the_energy_of_the_losses() -> None:
    torch.testing.assert_close(anomaly_scores(logits(), ["energy"])["energy"], free_energy(logits()))


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 5, 31), (3, 40, 17)])
def test_the_gaussian_and_its_gradient_are_those_of_torchvision(shape: tuple[int, int, int]) -> None:
    ours, theirs = (torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    blurred, expected = gaussian_blur(ours), vision.gaussian_blur(theirs, [7, 7], [1.0, 1.0])
    torch.testing.assert_close(blurred, expected, atol=1e-6, rtol=0)
    blurred.square().sum().backward()  # type: ignore[no-untyped-call]
    expected.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=0)


def test_sml_needs_statistics() -> None:
    with pytest.raises(ValueError, match="mean and deviation of each class"):
        anomaly_scores(logits(), ["sml"])


def test_max_logit_statistics_stream_and_merge() -> None:
    rng = np.random.default_rng(0)
    images = [(rng.normal(8, 2, (4, 5)).astype(np.float32), rng.integers(0, 3, (4, 5))) for _ in range(4)]
    one, other = MaxLogitStatistics(5), MaxLogitStatistics(5)
    for i, image in enumerate(images):
        (one, other)[i % 2].update(*image)
    one.merge(MaxLogitStatistics.from_state(other.state_dict()))
    mean, deviation = one.compute()
    values, labels = (np.concatenate([image[i].ravel() for image in images]) for i in (0, 1))
    for label in range(3):
        assert mean[label] == pytest.approx(values[labels == label].mean(), rel=1e-5)
        assert deviation[label] == pytest.approx(values[labels == label].std(), rel=1e-4)
    assert one.images == 4
    assert mean[4] == pytest.approx(values.mean(), rel=1e-5), "a class never predicted takes those of all pixels"
