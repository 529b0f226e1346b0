"""The detector: image in, class labels and anomaly energy out. The node and every command go through it.

detector = AnomalyDetector.load("starter")
result = detector(image)      # H×W×3 uint8 RGB
result.labels, result.energy  # H×W uint8 trainIds, H×W float32 nats
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from .engines import Engine
from .engines.selection import Settings, select
from .errors import EngineError, PebalError
from .integrity import SIDES
from .model_file import ModelInfo, file_sha256, resolve_model

ENGINES = ("auto", "torch", "onnxruntime")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
MIN_SIDE = 16


@dataclass(frozen=True)
class Result:
    """What the detector says of one image."""

    labels: np.ndarray
    """H×W uint8: trainId of the most probable inlier class."""
    energy: np.ndarray
    """H×W float32: free energy in nats, higher = more anomalous."""


class AnomalyDetector:
    """A model, loaded on one engine and device.

    Threads may share it: one after the other gets its answer. A forked process may not, and is told so.

    Args:
        engine: runs the network.
        info: description of the model.
        model_path: the file it was loaded from.
        reason: why this engine runs, where there was a choice.
    """

    def __init__(self, engine: Engine, info: ModelInfo, model_path: Path, reason: str = "") -> None:
        self.engine, self.info, self.model_path, self.reason = engine, info, model_path, reason
        self.model_sha256 = file_sha256(model_path)
        self._process = os.getpid()
        self._turn = threading.Lock()  # engines reuse their buffers from call to call

    @classmethod
    def load(
        cls,
        model: str | Path = "starter",
        engine: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        input_size: tuple[int, int] | None = None,
        smoothing: bool | None = None,
    ) -> AnomalyDetector:
        """Load a model file or a shipped model.

        Args:
            model: path, or bare name of a shipped model.
            engine: ``torch`` (.safetensors), ``onnxruntime`` (.onnx, or what was exported from a .safetensors file
                and lies beside it), or ``auto``, the faster of the engines that can run the file.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, with onnxruntime also ``tensorrt`` or ``tensorrt:N``; a
                named device that is missing is an error.
            precision: ``auto``, ``fp32``, ``fp16`` or ``bf16``; an .onnx file has one and takes no other.
            input_size: (height, width) at which the network runs; None = as the model says, (0, 0) = the image's own.
            smoothing: 7×7 Gaussian on the energy; None = as the model says.

        Raises:
            PebalError: no such model, engine, device or precision, or a damaged file.
        """
        if engine not in ENGINES:
            raise PebalError(f"There is no engine '{engine}'; choose one of: {', '.join(ENGINES)}.")
        if precision not in PRECISIONS:
            raise PebalError(f"There is no precision '{precision}'; choose one of: {', '.join(PRECISIONS)}.")
        if input_size is not None:
            check_input_size(input_size)
        settings = Settings(device, precision, input_size, smoothing)
        return cls(*select(resolve_model(model), engine, settings))

    @property
    def engine_name(self) -> str:
        """Runtime really in use."""
        return self.engine.name

    @property
    def device_name(self) -> str:
        """Device really in use."""
        return self.engine.device_name

    @property
    def notes(self) -> list[str]:
        """What runs slower on this machine than it could, and why, one sentence each."""
        return self.engine.notes

    @property
    def timings(self) -> dict[str, float]:
        """Seconds of the last call: preprocess, inference, postprocess."""
        return self.engine.timings

    @overload
    def __call__(self, images: np.ndarray) -> Result: ...
    @overload
    def __call__(self, images: Sequence[np.ndarray]) -> list[Result]: ...
    def __call__(self, images: np.ndarray | Sequence[np.ndarray]) -> Result | list[Result]:
        """Labels and energy of one image H×W×3 uint8 RGB, or of a list of images of one size as one batch.

        Raises:
            PebalError: wrong type or shape, sides under 16 pixels, images of different sizes, or a process that was
                forked after loading.
            EngineError: energies that are not finite, or an answer of another shape.
        """
        batch = [images] if isinstance(images, np.ndarray) else list(images)
        if not batch:
            return []
        for image in batch:
            if not isinstance(image, np.ndarray):
                raise PebalError(f"An image must be a NumPy array H×W×3 uint8 RGB, not {type(image).__name__}.")
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise PebalError(f"An image must be H×W×3 uint8 RGB; this one is {image.shape} {image.dtype}.")
            if min(image.shape[:2]) < MIN_SIDE:
                raise PebalError(f"An image must be at least {MIN_SIDE} pixels on both sides; this is {image.shape}.")
            if image.shape != batch[0].shape:
                raise PebalError(f"Images of one batch must have one size; got {batch[0].shape} and {image.shape}.")
        stacked = batch[0][None] if len(batch) == 1 else np.stack(batch)
        if os.getpid() != self._process:  # whose threads and GPU contexts this one has not: it would hang
            raise PebalError("The detector was loaded before this process was forked; load it here, or start by spawn.")
        with self._turn:
            labels, energy = self.engine(np.require(stacked, requirements=["C", "W"]))
        _check(labels, energy, stacked.shape[:3])
        results = [Result(*pair) for pair in zip(labels, energy)]
        return results[0] if isinstance(images, np.ndarray) else results

    def warm_up(self, height: int, width: int) -> None:
        """Run once at this size, so that the first real frame is not the slow one."""
        self(np.zeros((height, width, 3), np.uint8))


def check_input_size(size: tuple[int, int]) -> None:
    """Refuse a (height, width) at which no network runs.

    Raises:
        PebalError: it is neither (0, 0), the image's own size, nor two sides within `SIDES`.
    """
    low, high = SIDES
    if list(size) != [0, 0] and (
        len(size) != 2 or any(type(side) is not int or not low <= side <= high for side in size)
    ):
        raise PebalError(
            f"The input size must be two sides of {low} to {high} pixels, or 0 0 for the image's own; it is "
            f"{' '.join(map(str, size))}."
        )


def _check(labels: np.ndarray, energy: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse an answer that cannot be one; a sum tells of NaN and infinity in a hundredth of the time of a frame.

    A comparison with NaN is false, so it would raise no alarm anywhere.
    """
    if labels.shape != shape or energy.shape != shape:
        raise EngineError(f"The engine answers {labels.shape} and {energy.shape} to images {shape}; check the model.")
    with np.errstate(all="ignore"):
        total = energy.sum(dtype=np.float32)
    if not np.isfinite(total) and (bad := np.count_nonzero(~np.isfinite(energy))):
        raise EngineError(
            f"{bad} of {energy.size} energies are not finite; set precision to fp32 if it is less, and check "
            f"the device and the model."
        )
