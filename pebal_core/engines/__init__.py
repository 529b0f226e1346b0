"""Engines that run a network behind one small interface, with one module per runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

InputSize = tuple[int, ...]
"""(height, width) at which a network runs, or (longer side,), to which larger images are scaled down."""


def network_size(input_size: InputSize | None, height: int, width: int) -> tuple[int, int]:
    """Height and width at which a network sees an image of a height and width in pixels.

    Examples:
        >>> network_size(None, 1080, 1920), network_size((512, 1024), 1080, 1920)
        ((1080, 1920), (512, 1024))
        >>> network_size((1024,), 1080, 1920), network_size((1024,), 360, 480)  # keeps the aspect ratio
        ((576, 1024), (360, 480))
    """
    if input_size is None:
        return height, width
    if len(input_size) == 2:
        return input_size[0], input_size[1]
    longer = max(height, width, input_size[0])
    rows, columns = ((side * input_size[0] + longer // 2) // longer for side in (height, width))  # rounds half up
    return max(1, rows), max(1, columns)


def size_text(input_size: Sequence[int]) -> str:
    """An input size in words.

    Examples:
        >>> size_text((512, 1024)), size_text((1024,))
        ('512×1024', 'at most 1024 pixels on the longer side')
    """
    if len(input_size) == 2:
        return "×".join(map(str, input_size))
    return f"at most {input_size[0]} pixels on the longer side"


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
