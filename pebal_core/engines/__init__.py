"""What runs a network: one small interface, one module per runtime."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Engine(Protocol):
    """Runs one model on one device."""

    name: str
    """Runtime really in use, such as ``torch``."""
    device_name: str
    """Device really in use, such as ``cpu`` or ``cuda:0 (NVIDIA …)``."""
    precision: str
    """Arithmetic of the network: ``fp32``, ``fp16`` or ``bf16``."""
    timings: dict[str, float]
    """Seconds that the last call spent in preprocess, inference and postprocess."""

    @property
    def notes(self) -> list[str]:
        """What runs slower on this machine than it could, and why, one sentence each."""
        ...

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels N×H×W uint8 and energies N×H×W float32 of images N×H×W×3 uint8 RGB."""
        ...
