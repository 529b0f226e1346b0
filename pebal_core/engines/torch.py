"""The PyTorch engine: CPU or CUDA, channels last, optional half precision."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import PebalError
from ..model_file import ModelInfo
from ..networks import SegmentationNetwork
from ..scores import free_energy, gaussian_blur

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class TorchEngine:
    """Runs a `SegmentationNetwork`.

    Args:
        network: moved to the device and into channels-last order.
        info: normalisation of the model.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``auto`` (fp16 on CUDA, fp32 on CPU), ``fp32``, ``fp16`` or ``bf16``.
        input_size: (height, width) at which the network runs; None = the image's own size.
        smoothing: whether the energy passes the 7×7 Gaussian.

    Raises:
        PebalError: a named device that is missing; there is no silent fallback.
    """

    name = "torch"

    def __init__(
        self,
        network: SegmentationNetwork,
        info: ModelInfo,
        device: str = "auto",
        precision: str = "auto",
        input_size: tuple[int, int] | None = None,
        smoothing: bool = True,
    ) -> None:
        self.device = find_device(device)
        self.device_name = str(self.device)
        if self.device.type == "cuda":
            self.device_name += f" ({torch.cuda.get_device_name(self.device)})"
        if precision == "auto":
            precision = "fp16" if self.device.type == "cuda" else "fp32"
        self.precision = precision
        self.input_size, self.smoothing = input_size, smoothing
        self.network = network.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean = 255 * torch.tensor(info.mean, device=self.device).view(1, 3, 1, 1)
        self.std = 255 * torch.tensor(info.std, device=self.device).view(1, 3, 1, 1)
        self.timings: dict[str, float] = {}

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            started = time.perf_counter()
            batch = self._preprocess(images)
            self._wait()
            prepared = time.perf_counter()
            with self._autocast():
                logits = self.network(batch)
            self._wait()
            inferred = time.perf_counter()
            labels, energy = self._postprocess(logits.float(), images.shape[1:3])
            result = labels.cpu().numpy(), energy.cpu().numpy()
        finished = time.perf_counter()
        self.timings = {
            "preprocess": prepared - started,
            "inference": inferred - prepared,
            "postprocess": finished - inferred,
        }
        return result

    def _preprocess(self, images: np.ndarray) -> Tensor:
        """N×H×W×3 uint8 → normalised N×3×h×w on the device; the bytes are already channels last."""
        pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float()
        if self.input_size is not None and tuple(pixels.shape[-2:]) != self.input_size:
            pixels = F.interpolate(pixels, self.input_size, mode="bilinear", antialias=True)
        return pixels.sub_(self.mean).div_(self.std)

    def _postprocess(self, logits: Tensor, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Labels and energy at the size of the image."""
        labels = logits[:, :-1].argmax(dim=1).to(torch.uint8)
        energy = free_energy(logits)
        if tuple(energy.shape[-2:]) != tuple(size):
            labels = F.interpolate(labels[:, None], size, mode="nearest-exact")[:, 0]
            energy = F.interpolate(energy[:, None], size, mode="bilinear")[:, 0]
        return labels, gaussian_blur(energy) if self.smoothing else energy

    def _autocast(self) -> Any:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.precision])

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def find_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        PebalError: it is not there; the message says what is.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise PebalError(f"There is no device '{name}'; use auto, cpu, cuda or cuda:N.") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise PebalError(f"The device '{name}' is not supported; use auto, cpu, cuda or cuda:N.")
    index = device.index or 0
    if index >= torch.cuda.device_count():
        built = "with" if torch.version.cuda else "without"
        raise PebalError(
            f"The device '{name}' is missing: PyTorch {torch.__version__}, built {built} CUDA, sees "
            f"{torch.cuda.device_count()} GPUs. Install a driver and a CUDA build of PyTorch, or set device to cpu."
        )
    return torch.device("cuda", index)
