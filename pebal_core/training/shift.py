"""Fits the linear function that makes a model calm on known things (`EnergyShift`).

The function has to lower the energy of known pixels that alarm or nearly alarm, and must not lower the energy of pasted
outliers. Both are drawn from samples, which are those of a training or the footage of a camera. The network itself
stays as it is, so labels do not change, and only one number per feature is learned.
"""

from __future__ import annotations

import base64
import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ..errors import PebalError
from ..labels import OUTLIER, VOID
from ..model_info import ModelInfo
from ..networks import EnergyShift, SegmentationNetwork
from ..scores import free_energy
from .samples import TrainingSamples

NEAR = 3.0
"""A known pixel counts as nearly alarming if its energy is less than this many nats below the threshold."""
DEPTH = 6.0
"""Such pixels are to end this many nats below the threshold."""
MOST_SHIFT = 8.0
"""Largest shift in nats that is asked for."""
OUTLIER_WEIGHT = 8.0
"""Weight of an outlier's pixel; a known pixel has weight 1."""
SLACK = 0.5
"""The function is to be at most -SLACK nats on outliers, so that it does nothing there."""
RIDGE = 0.02
"""Weight of the squared coefficients of the standardised features."""
PER_SAMPLE = 400
"""Most pixels of each kind from one sample."""
MOST_NUMBERS = 2**27
"""Most numbers that the collected features may have (512 MB); wide networks give fewer pixels per sample."""
DRAWN = 20000
"""Number of outlier pixels that are drawn from `OutlierStatistics`."""
FEWEST = 200
"""Fewest pixels of each kind from which a function is fitted."""
ITERATIONS, BATCH, RATE, DECAY = 600, 2048, 1e-2, 0.995
"""Steps of Adam, pixels of each kind per step, learning rate, and its decay per step."""


class Pixels(NamedTuple):
    """Pixels of samples."""

    features: Tensor
    """N×D float32, the inputs of the function (`EnergyShift.inputs`)."""
    energy: Tensor
    """N float32, energies in nats before the adaptation."""
    outlier: Tensor
    """N bool, whether the pixel belongs to a pasted outlier."""
    calm: Tensor
    """N bool, whether the pixel belongs to a class that must not alarm. Together such pixels weigh as much as the other
    known ones."""


class OutlierStatistics(NamedTuple):
    """Mean and covariance of the inputs of the function at outliers of the training.

    They let an adaptation leave alone what resembles these outliers, without the data of the training.

    Examples:
        >>> statistics = OutlierStatistics.of(
        ...     Pixels(torch.randn(500, 3) + 2, torch.zeros(500), torch.ones(500) > 0, torch.zeros(500) > 0)
        ... )
        >>> decoded = OutlierStatistics.decode(statistics.encode(), features=3)
        >>> bool((decoded.mean - 2).abs().max() < 0.3), decoded.draw(1000).shape
        (True, torch.Size([1000, 3]))
    """

    mean: Tensor
    """D float32."""
    covariance: Tensor
    """D×D float32."""

    @classmethod
    def of(cls, pixels: Pixels) -> OutlierStatistics:
        """The statistics of the outliers among some pixels."""
        features = pixels.features[pixels.outlier]
        return cls(features.mean(0), torch.cov(features.T))

    def encode(self) -> str:
        """The statistics as half-precision numbers in base64, for a model file."""
        numbers = torch.cat([self.mean[None], self.covariance]).numpy().astype(np.float16)
        return base64.b64encode(numbers.tobytes()).decode()

    @classmethod
    def decode(cls, text: str, features: int) -> OutlierStatistics:
        """The statistics from the text in a model file.

        Args:
            text: the text.
            features: D, the number of features of the network.

        Raises:
            PebalError: the text is damaged, or the statistics are those of another network.
        """
        try:
            numbers = np.frombuffer(base64.b64decode(text, validate=True), np.float16).astype(np.float32)
            table = torch.from_numpy(numbers.reshape(features + 1, features))
        except ValueError as error:
            raise PebalError(
                "The outlier statistics in the model file are damaged or those of another network; add them again with "
                "scripts/outlier_statistics.py."
            ) from error
        return cls(table[0], table[1:])

    def draw(self, count: int) -> Tensor:
        """Draw inputs (count×D) from the normal distribution with these statistics."""
        values, vectors = torch.linalg.eigh((self.covariance + self.covariance.T) / 2)
        return self.mean + torch.randn(count, len(values)) * values.clamp_min(0).sqrt() @ vectors.T


def add_function(network: SegmentationNetwork, info: ModelInfo) -> tuple[EnergyShift, ModelInfo]:
    """The same network with one more function, which does nothing until it is fitted, and its description.

    Examples:
        >>> from pebal_core.networks import build_network
        >>> info = ModelInfo("espnetv2", {"scale": 0.5})
        >>> network, info = add_function(build_network("espnetv2", scale=0.5), info)
        >>> info.network, info.network_args
        ('energy_shift', {'network': 'espnetv2', 'arguments': {'scale': 0.5}, 'functions': 1})
        >>> add_function(network, info)[1].network_args["functions"]
        2
    """
    info = copy.deepcopy(info)
    if isinstance(network, EnergyShift):
        network = network.add_function()
        info.network_args["functions"] = network.functions
    else:
        network = EnergyShift(network).eval()
        info.network_args = {"network": info.network, "arguments": info.network_args, "functions": 1}
        info.network = "energy_shift"
    return network, info


@torch.inference_mode()
def collect_pixels(
    network: EnergyShift,
    info: ModelInfo,
    samples: TrainingSamples,
    count: int,
    threshold: float,
    calm: Sequence[int] = (),
) -> Pixels:
    """Draw nearly alarming known pixels, and pixels of outliers, from samples.

    Args:
        network: the network, in eval mode, with a function that is not fitted yet.
        info: its description.
        samples: scenes with pasted outliers.
        count: number of samples.
        threshold: threshold of the model in nats.
        calm: ids of classes that must not alarm.

    Examples:
        >>> class Grey:
        ...     def draw(self, rng, number):
        ...         image, labels = np.full((64, 96, 3), 90, np.uint8), np.zeros((64, 96), np.uint8)
        ...         labels[20:40, 30:60] = OUTLIER
        ...         return image, labels
        >>> from pebal_core.networks import build_network
        >>> network, info = add_function(build_network("espnetv2", scale=0.5).eval(), ModelInfo("espnetv2"))
        >>> pixels = collect_pixels(network, info, Grey(), 3, threshold=-100.0)
        >>> pixels.features.shape[1] == sum(network.channels), int(pixels.outlier.sum()), len(pixels.energy)
        (True, 450, 1650)
    """
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (info.mean, info.std))
    most = min(PER_SAMPLE, max(1, MOST_NUMBERS // sum(network.channels) // (2 * count)))
    parts: list[Pixels] = []
    for number in track(range(count), "pixels of samples", console=Console(stderr=True)):
        rng = np.random.default_rng([7, number])
        image, target = samples.draw(rng, number)
        normalised = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 - mean) / std
        features = network.trunk(network.pad(normalised))
        logits = network.head(features)
        energy = free_energy(logits)[0].numpy()
        rows, columns = (
            np.arange(count) * side // count for count, side in zip(energy.shape, target.shape, strict=True)
        )
        labels = target[rows[:, None], columns]
        known, must = (labels != OUTLIER) & (labels != VOID) & (energy > threshold - NEAR), np.isin(labels, calm)
        kinds = [(False, False, known & ~must), (False, True, known & must), (True, False, labels == OUTLIER)]
        for outlier, calmed, here in kinds:
            pixels = np.flatnonzero(here)
            chosen = torch.from_numpy(np.sort(rng.permutation(pixels)[:most]))
            inputs = [_read_at(x, chosen, energy.shape) for x in network.inputs(features)]
            parts.append(
                Pixels(
                    torch.cat(inputs, dim=1),
                    torch.from_numpy(energy.ravel())[chosen],
                    torch.full((len(chosen),), outlier),
                    torch.full((len(chosen),), calmed),
                )
            )
    return Pixels(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _read_at(x: Tensor, pixels: Tensor, size: tuple[int, ...]) -> Tensor:
    """Values (N×C) of a map 1×C×h×w at N pixels of its upsampled form, given as indices into H·W of `size`."""
    height, width = size
    places = torch.stack([pixels % width / max(width - 1, 1), pixels // width / max(height - 1, 1)], dim=-1)
    values = F.grid_sample(x, (2 * places - 1).view(1, 1, -1, 2).to(x.dtype), align_corners=True)
    return values[0, :, 0].T.contiguous()


def fit_function(
    pixels: Pixels, threshold: float, remembered: OutlierStatistics | None = None, depth: float = DEPTH
) -> tuple[Tensor, float]:
    """Fit a function by penalised least squares.

    With d = w·φ + b, the pixels to calm want d ≥ E - (threshold - `depth`) and outliers want d ≤ -`SLACK`. Squared
    violations are averaged over each kind of pixel, and the mean of the outliers counts `OUTLIER_WEIGHT` times.
    Outliers of the training, if known, share this weight equally with those of the footage.

    Args:
        pixels: what `collect_pixels` returned.
        threshold: threshold of the model in nats.
        remembered: statistics of outliers of the training; None if they are not known.
        depth: number of nats below the threshold at which known pixels are to end.

    Returns:
        w, D float32, and b in nats.

    Raises:
        PebalError: there are too few pixels of a kind.

    Examples:
        >>> features = torch.cat([torch.randn(1000, 2) + 3, torch.randn(1000, 2) - 3])
        >>> outlier = torch.arange(2000) >= 1000
        >>> pixels = Pixels(features, torch.full((2000,), -1.0), outlier, torch.zeros(2000) > 0)
        >>> weight, bias = fit_function(pixels, threshold=-3.0)
        >>> shift = (features @ weight + bias).relu()
        >>> bool(shift[~outlier].mean() > 3), bool(shift[outlier].mean() < 0.5)
        (True, True)
    """
    groups = [torch.nonzero(pixels.outlier == outlier)[:, 0] for outlier in (False, True)]
    if min(map(len, groups)) < FEWEST:
        few = "known pixels near the threshold" if len(groups[0]) < FEWEST else "pixels of pasted outliers"
        raise PebalError(f"The samples give fewer than {FEWEST} {few}; use more samples.")
    mean, std = pixels.features.mean(0), pixels.features.std(0)
    std = std.clamp_min(0.1 * float(std.mean()))  # what hardly varies here may vary a lot elsewhere
    wanted = (pixels.energy - (threshold - depth)).clamp(0, MOST_SHIFT)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        weight, bias = torch.zeros(len(mean), requires_grad=True), torch.full((), 0.1, requires_grad=True)
        optimizer = torch.optim.Adam([weight, bias], RATE)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, DECAY)
        known = pixels.features[groups[0]], wanted[groups[0]]
        calm = pixels.calm[groups[0]]
        weights = torch.where(calm, max(1, int((~calm).sum())) / max(1, int(calm.sum())), 1.0)
        outliers = [pixels.features[groups[1]]] + ([] if remembered is None else [remembered.draw(DRAWN)])

        def function(features: Tensor) -> Tensor:
            return ((features - mean) / std) @ weight + bias

        for _ in range(ITERATIONS):
            chosen = torch.multinomial(weights, BATCH, replacement=True)
            missing = (known[1][chosen] - function(known[0][chosen])).relu()
            loss = missing.square().mean() + RIDGE * weight.square().sum()
            for features in outliers:
                values = function(features[torch.randint(len(features), (BATCH,))])
                loss = loss + OUTLIER_WEIGHT / len(outliers) * (values + SLACK).relu().square().mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    weight = weight.detach() / std
    return weight, float(bias.detach() - weight @ mean)
