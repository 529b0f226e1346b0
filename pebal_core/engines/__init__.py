"""Engines that run a network behind one small interface, with one module per runtime."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Engine(Protocol):
    """Runs one model on one device."""

    name: str
    """Runtime that is actually in use, such as ``torch``."""
    device_name: str
    """Device that is actually in use, such as ``cpu`` or ``cuda:0 (NVIDIA …)``."""
    precision: str
    """Arithmetic of the network: ``fp32``, ``fp16`` or ``bf16``."""
    timings: dict[str, float]
    """Seconds that the last call spent in preprocess, inference and postprocess."""

    @property
    def notes(self) -> list[str]:
        """Accelerations that are unavailable on this machine and the reasons, one sentence each."""
        ...

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute labels (N×H×W uint8) and energies (N×H×W float32, nats) of images (N×H×W×3 uint8 RGB)."""
        ...
