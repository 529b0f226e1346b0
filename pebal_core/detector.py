"""The detector computes class labels and anomaly energy from an image. The node and all commands use it.

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

from .engines import Engine, InputSize
from .engines.selection import EngineSettings, select
from .errors import EngineError, PebalError
from .model_file import file_sha256, resolve_model
from .model_info import SIDES, ModelInfo

ENGINES = ("auto", "torch", "onnxruntime")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
MIN_SIDE = 16


@dataclass(frozen=True)
class Result:
    """The detector's output for one image.

    Examples:
        >>> result = Result(np.zeros((2, 3), np.uint8), np.full((2, 3), -9, np.float32))
        >>> int((result.energy > -4).sum())  # pixels above an alarm threshold
        0
    """

    labels: np.ndarray
    """H×W uint8, the number (trainId) of the most probable inlier class."""
    energy: np.ndarray
    """H×W float32, free energy in nats; a higher value is more anomalous."""


class AnomalyDetector:
    """A model, loaded on one engine and device.

    Threads may share a detector; their calls are serialised. A process that was forked after loading cannot use it and
    gets an error.

    Args:
        engine: runs the network.
        info: description of the model.
        model_path: the file that the model was loaded from.
        reason: why this engine was chosen, if there was a choice.

    Examples:
        >>> image = np.full((96, 160, 3), 128, np.uint8)
        >>> result = AnomalyDetector.load("starter", engine="torch", device="cpu")(image)
        >>> result.labels.shape, result.energy.shape, result.energy.dtype
        ((96, 160), (96, 160), dtype('float32'))
    """

    def __init__(self, engine: Engine, info: ModelInfo, model_path: Path, reason: str = "") -> None:
        self.engine, self.info, self.model_path, self.reason = engine, info, model_path, reason
        self.model_sha256 = file_sha256(model_path)
        self._process_id = os.getpid()
        self._lock = threading.Lock()  # engines reuse their buffers between calls

    @classmethod
    def load(
        cls,
        model: str | Path = "starter",
        engine: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        input_size: InputSize | None = None,
        smoothing: bool | None = None,
    ) -> AnomalyDetector:
        """Load a model file or a shipped model.

        Args:
            model: path, or name of a shipped model.
            engine: ``torch`` runs .safetensors files; ``onnxruntime`` runs .onnx files, or the export that is stored
                beside a .safetensors file; ``auto`` picks the fastest engine that can run the file.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, with onnxruntime also ``tensorrt`` or ``tensorrt:N``. A
                device that is named but missing is an error.
            precision: ``auto``, ``fp32``, ``fp16`` or ``bf16``. The precision of an .onnx file is fixed.
            input_size: (height, width) at which the network runs, or (longer side,), to which larger images are scaled
                down. None takes the model's input size; (0, 0) keeps the size of the image.
            smoothing: whether the energy is smoothed by a 7×7 Gaussian; None takes the model's setting.

        Raises:
            PebalError: the model, engine, device or precision does not exist, or the file is damaged.
        """
        if engine not in ENGINES:
            raise PebalError(f"There is no engine '{engine}'; choose one of: {', '.join(ENGINES)}.")
        if precision not in PRECISIONS:
            raise PebalError(f"There is no precision '{precision}'; choose one of: {', '.join(PRECISIONS)}.")
        if input_size is not None:
            check_input_size(input_size)
        settings = EngineSettings(device, precision, input_size, smoothing)
        return cls(*select(resolve_model(model), engine, settings))

    @property
    def engine_name(self) -> str:
        """Runtime that is actually in use."""
        return self.engine.name

    @property
    def device_name(self) -> str:
        """Device that is actually in use."""
        return self.engine.device_name

    @property
    def notes(self) -> list[str]:
        """Accelerations that are unavailable on this machine and the reasons, one sentence each."""
        return self.engine.notes

    @property
    def timings(self) -> dict[str, float]:
        """Seconds that the last call spent in preprocess, inference and postprocess."""
        return self.engine.timings

    @overload
    def __call__(self, images: np.ndarray) -> Result: ...
    @overload
    def __call__(self, images: Sequence[np.ndarray]) -> list[Result]: ...
    def __call__(self, images: np.ndarray | Sequence[np.ndarray]) -> Result | list[Result]:
        """Compute labels and energy of one image, or of a batch of images of one size.

        Args:
            images: H×W×3 uint8 RGB, or a sequence of such images.

        Raises:
            PebalError: an image has the wrong type or shape or a side under 16 pixels, the images differ in size, or
                the process was forked after loading.
            EngineError: the engine returns energies that are not finite or arrays of the wrong shape.
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
        if os.getpid() != self._process_id:  # a fork lacks the threads and GPU context, so the call would hang
            raise PebalError(
                "The detector was loaded before this process was forked; load it here, or use the start method spawn."
            )
        with self._lock:
            labels, energy = self.engine(np.require(stacked, requirements=["C", "W"]))
        _check(labels, energy, stacked.shape[:3])
        results = [Result(*pair) for pair in zip(labels, energy)]
        return results[0] if isinstance(images, np.ndarray) else results

    def warm_up(self, height: int, width: int) -> None:
        """Run once at this size (in pixels), so that the first real frame is not delayed by initialisation."""
        self(np.zeros((height, width, 3), np.uint8))


def check_input_size(size: InputSize) -> None:
    """Refuse a size at which no network can run.

    Raises:
        PebalError: the size is neither (0, 0), which keeps the image's size, nor one or two sides within `SIDES`.

    Examples:
        >>> check_input_size((0, 0))
        >>> check_input_size((512, 1024))
        >>> check_input_size((1024,))
    """
    low, high = SIDES
    if list(size) != [0, 0] and (
        len(size) not in (1, 2) or any(type(side) is not int or not low <= side <= high for side in size)
    ):
        raise PebalError(
            f"The input size must be a height and a width of {low} to {high} pixels, the longer side alone, or 0 0 for "
            f"the image's own size; it is {' '.join(map(str, size))}."
        )


def _check(labels: np.ndarray, energy: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse outputs of the wrong shape, and energies that are not finite.

    A NaN compares as false and would never raise an alarm. The sum reveals NaN and infinity in a hundredth of the time
    that a frame takes.
    """
    if labels.shape != shape or energy.shape != shape:
        raise EngineError(
            f"The engine returned {labels.shape} and {energy.shape} for images of {shape}; check the model."
        )
    with np.errstate(all="ignore"):
        total = energy.sum(dtype=np.float32)
    if not np.isfinite(total) and (bad := np.count_nonzero(~np.isfinite(energy))):
        raise EngineError(
            f"{bad} of {energy.size} energies are not finite; set precision to fp32 if it is lower, and check the "
            "device and the model."
        )
