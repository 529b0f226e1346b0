"""Anomaly scores from logits. Higher means more anomalous."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision


def free_energy(logits: Tensor) -> Tensor:
    """Free energy in nats, ``E = -log Σ_{k<K} exp f_k`` (Liu et al., NeurIPS 2020; PEBAL eq. 2).

    Args:
        logits: B×(K+1)×H×W; the last channel is the abstention and never enters E.

    Returns:
        B×H×W, low on inliers and high on outliers.
    """
    return -torch.logsumexp(logits[:, :-1], dim=1)


def gaussian_blur(maps: Tensor) -> Tensor:
    """The 7×7 Gaussian (sigma 1, reflected borders) that PEBAL applies to energies; differentiable.

    Args:
        maps: B×H×W, both sides at least 4.
    """
    return vision.gaussian_blur(maps, [7, 7], [1.0, 1.0])
