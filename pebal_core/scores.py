"""Computes anomaly scores from logits; a higher score is more anomalous.

With f_k the logits of the K inlier classes, p their softmax and c = argmax f, the scores are:

| score | definition |
|---|---|
| energy | E = -log Σ exp f_k |
| msp | 1 - p_c (maximum softmax probability, Hendrycks & Gimpel, ICLR 2017) |
| max_logit | -f_c |
| entropy | -Σ p_k log p_k |
| sml | -(f_c - μ_c) / σ_c (standardised max logits, Jung et al., ICCV 2021) |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SCORES: dict[str, str] = {
    "energy": "free energy",
    "msp": "1 - maximum softmax probability",
    "max_logit": "negative maximum logit",
    "entropy": "entropy of the softmax, in nats",
    "sml": "negative maximum logit, standardised by predicted class",
}
"""The scores and their descriptions."""

_BELL = np.exp(-0.5 * np.arange(-3, 4) ** 2)
GAUSSIAN: tuple[float, ...] = tuple((_BELL / _BELL.sum()).tolist())
"""Weights of the 7 taps of a Gaussian with sigma 1."""


def free_energy(logits: Tensor) -> Tensor:
    """Free energy in nats, ``E = -log Σ_{k<K} exp f_k`` (Liu et al., NeurIPS 2020; PEBAL eq. 2).

    Args:
        logits: B×(K+1)×H×W; the last channel is the abstention, which E ignores.

    Returns:
        B×H×W, low on inliers and high on outliers.

    Examples:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, 5.0], [0.0, 0.0, 5.0]])[..., None, None]  # two images of one pixel
        >>> [round(energy, 3) for energy in free_energy(logits).flatten().tolist()]  # certain, uncertain
        [-2.127, -0.693]
    """
    return -torch.logsumexp(logits[:, :-1], dim=1)


def gaussian_blur(maps: Tensor) -> Tensor:
    """Apply the 7×7 Gaussian (sigma 1, reflected borders) that PEBAL uses for energies; it is differentiable.

    It is computed as a sum of shifted maps along each axis, because a convolution of one channel and its gradient take
    several times as long.

    Args:
        maps: B×H×W with H and W of at least 4.

    Returns:
        B×H×W.

    Examples:
        >>> import torch
        >>> spot = torch.zeros(1, 9, 9)
        >>> spot[0, 4, 4] = 1
        >>> [round(value, 3) for value in gaussian_blur(spot)[0, 4, 4:8].tolist()]
        [0.159, 0.097, 0.022, 0.002]
    """
    reach = len(GAUSSIAN) // 2
    for axis, sides in ((-2, (0, 0, reach, reach)), (-1, (reach, reach, 0, 0))):
        padded, size = F.pad(maps, sides, mode="reflect"), maps.shape[axis]
        maps = sum((w * padded.narrow(axis, i, size) for i, w in enumerate(GAUSSIAN)), torch.zeros_like(maps))
    return maps


def anomaly_scores(
    logits: Tensor, names: Sequence[str], max_logits: tuple[Tensor, Tensor] | None = None
) -> dict[str, Tensor]:
    """Compute several scores from the same logits.

    The sums leave out the highest class, so that probabilities within 1e-7 of one keep their order in float32.

    Args:
        logits: B×(K+1)×H×W float32; the last channel, the abstention, is ignored by all scores.
        names: keys of `SCORES`.
        max_logits: mean and standard deviation of the highest logit by class, K each, for ``sml``.

    Returns:
        B×H×W for each name.

    Raises:
        ValueError: a name is unknown, or ``sml`` is requested without `max_logits`.

    Examples:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, 5.0]])[..., None, None]
        >>> scores = anomaly_scores(logits, ["msp", "max_logit", "entropy"])
        >>> [round(score.item(), 3) for score in scores.values()]
        [0.119, -2.0, 0.365]
    """
    highest, label = logits[:, :-1].max(dim=1)
    below = logits[:, :-1] - highest[:, None]
    others = below.exp().scatter_(1, label[:, None], 0)  # exp(f_k - f_c) for k ≠ c
    rest = others.sum(dim=1)
    scores: dict[str, Tensor] = {}
    for name in names:
        if name == "energy":
            scores[name] = -(highest + torch.log1p(rest))
        elif name == "msp":
            scores[name] = rest / (1 + rest)
        elif name == "max_logit":
            scores[name] = -highest
        elif name == "entropy":
            scores[name] = torch.log1p(rest) - (others * below).sum(dim=1) / (1 + rest)
        elif name == "sml":
            if max_logits is None:
                raise ValueError("standardised max logits need the mean and deviation of each class")
            mean, deviation = (values.to(highest) for values in max_logits)
            scores[name] = -(highest - mean[label]) / deviation[label]
        else:
            raise ValueError(f"there is no score '{name}'")
    return scores


class MaxLogitStatistics:
    """Accumulates mean and standard deviation of the highest logit by predicted class, over training images.

    Args:
        classes: number K of classes.

    Examples:
        >>> statistics = MaxLogitStatistics(classes=2)
        >>> statistics.update(np.array([[3.0, 5.0, 1.0]], np.float32), np.array([[0, 0, 1]]))
        >>> mean, deviation = statistics.compute()
        >>> mean.tolist()
        [4.0, 3.0]
    """

    def __init__(self, classes: int) -> None:
        self.images = 0
        self._sums = np.zeros((3, classes))  # pixels, sum and sum of squares of the highest logit

    def update(self, highest: np.ndarray, labels: np.ndarray) -> None:
        """Add an image.

        Args:
            highest: H×W floats, the highest logit of each pixel.
            labels: H×W integers, the predicted class of each pixel.
        """
        values, labels = highest.ravel().astype(np.float64), labels.ravel()
        self._sums += [np.bincount(labels, w, self._sums.shape[1]) for w in (None, values, values**2)]
        self.images += 1

    def merge(self, other: MaxLogitStatistics) -> None:
        """Add the images of another instance with the same number of classes."""
        self._sums += other._sums
        self.images += other.images

    def state_dict(self) -> dict[str, np.ndarray]:
        """Arrays for `numpy.savez`."""
        return {"images": np.array(self.images), "sums": self._sums}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> MaxLogitStatistics:
        """Restore from the arrays of `state_dict`, for example as read by `numpy.load`."""
        statistics = cls(state["sums"].shape[1])
        statistics.images = int(state["images"])
        statistics._sums = state["sums"].copy()
        return statistics

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, K float32 each; a class with fewer than two pixels gets those of all pixels."""
        enough = self._sums[0] >= 2
        pixels, total, squares = np.where(enough, self._sums, self._sums.sum(axis=1, keepdims=True))
        mean = total / np.maximum(pixels, 1)
        variance = np.maximum(squares / np.maximum(pixels, 1) - mean**2, 0)
        deviation = np.sqrt(variance)
        deviation[deviation == 0] = 1
        return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()
