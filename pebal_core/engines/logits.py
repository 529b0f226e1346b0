"""What engines share whose network ends in logits: labels and energy are read from them at the image's size."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .readout import Readout


class Logits(NamedTuple):
    """The network's answer at its own resolution."""

    values: Tensor
    """N×(K+1)×h×w, the last channel is the abstention."""
    padded: tuple[int, int]
    """Size of the image as the network took it: what the logits are upsampled to."""
    seen: tuple[int, int]
    """The part of that, from the upper left corner, which is no padding."""


class LogitsEngine(ABC):
    """An engine (see `pebal_core.engines.Engine`) that can also give logits.

    Args:
        input_size: (height, width) at which the network runs; None = the image's own size.
        smoothing: whether the energy passes the 7×7 Gaussian.
    """

    name: str
    device_name: str
    precision: str

    def __init__(self, input_size: tuple[int, int] | None, smoothing: bool) -> None:
        self.input_size, self.smoothing = input_size, smoothing
        self.timings: dict[str, float] = {}
        self._readout = Readout()

    @property
    def notes(self) -> list[str]:
        """See `Engine`."""
        return []

    @abstractmethod
    def logits(self, images: np.ndarray, input_size: tuple[int, int] | None) -> Logits:
        """Logits of images N×H×W×3 uint8 RGB; sets the `timings` of preprocess and inference.

        Args:
            input_size: (height, width) to bring the images to first; None = their own size.
        """

    @torch.inference_mode()
    def read(self, logits: Logits, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Labels N×H×W uint8 and energies N×H×W float32, without the Gaussian, at the size of the image."""
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
