"""Base class of engines whose network returns logits, from which labels and energy are computed."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import InputSize
from .readout import Readout


class Logits(NamedTuple):
    """The network's output at its own resolution."""

    values: Tensor
    """N×(K+1)×h×w; the last channel is the abstention."""
    padded: tuple[int, int]
    """(height, width) of the padded network input, to which the logits are upsampled."""
    seen: tuple[int, int]
    """(height, width) of the part without padding, which starts at the upper left corner."""


class LogitsEngine(ABC):
    """An engine (see `pebal_core.engines.Engine`) that can also give logits.

    Args:
        input_size: (height, width) at which the network runs, or (longer side,), to which larger images are scaled
            down; None keeps the size of the image.
        smoothing: whether the energy is smoothed by the 7×7 Gaussian.
    """

    name: str
    device_name: str
    precision: str

    def __init__(self, input_size: InputSize | None, smoothing: bool) -> None:
        self.input_size, self.smoothing = input_size, smoothing
        self.timings: dict[str, float] = {}
        self._readout = Readout()

    @property
    def notes(self) -> list[str]:
        """See `Engine`."""
        return []

    @abstractmethod
    def logits(self, images: np.ndarray, input_size: InputSize | None) -> Logits:
        """Compute logits of images, and set the `timings` of preprocess and inference.

        Args:
            images: N×H×W×3 uint8 RGB.
            input_size: the size to which the images are scaled first, as for `network_size`.
        """

    @torch.inference_mode()
    def read(self, logits: Logits, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Compute labels (N×H×W uint8) and unsmoothed energies (N×H×W float32) at the size (H, W) of the image."""
        labels, energy = self._readout(logits.values, logits.padded, logits.seen)
        if logits.seen != size:
            labels = F.interpolate(labels[:, None], size, mode="nearest-exact")[:, 0]
            energy = F.interpolate(energy[:, None], size, mode="bilinear")[:, 0]
        return labels, energy

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = self.logits(images, self.input_size)
        started = time.perf_counter()
        labels, energy = self.read(logits, (images.shape[1], images.shape[2]))
        if self.smoothing:
            energy = self._readout.smooth(energy)
        result = labels.cpu().numpy(), energy.cpu().numpy()
        self.timings["postprocess"] = time.perf_counter() - started
        return result
