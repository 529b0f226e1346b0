"""The PyTorch engine, for the CPU or CUDA, with folded BatchNorm, channels last, and optional half precision."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import PebalError
from ..model_info import ModelInfo
from ..networks import SegmentationNetwork
from ..networks.folding import fold, round_kernels
from ..networks.winograd import use_winograd
from . import InputSize, network_size
from .cuda import Answer, Function, Graphed, Guarded, Transfers, timer
from .logits import Logits, LogitsEngine
from .machine import allotted_cores, keep_freed_memory, release_freed_memory

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchEngine(LogitsEngine):
    """Runs a `SegmentationNetwork`.

    Args:
        network: the network, which the engine takes over; it is folded and moved to the device, precision and
            channels-last order.
        info: description of the model, whose normalisation is used.
        device: ``auto`` (CUDA if there is a GPU), ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``auto`` (fp16 on CUDA, fp32 on CPU), ``fp32``, ``fp16`` or ``bf16``.
        input_size: (height, width) at which the network runs, or (longer side,), to which larger images are scaled
            down; None keeps the size of the image.
        smoothing: whether the energy is smoothed by the 7×7 Gaussian.
        accelerate: on CUDA, whether to use graphs, fast layers, fused kernels for the readout, and pinned, overlapped
            copies. Those that are unavailable on a machine are switched off, and `notes` say so.

    Raises:
        PebalError: the named device is missing; there is no silent fallback.

    Examples:
        >>> from pebal_core.model_file import load_model
        >>> engine = TorchEngine(*load_model("starter"), device="cpu")
        >>> labels, energy = engine(np.full((1, 64, 96, 3), 128, np.uint8))
        >>> labels.shape, energy.dtype
        ((1, 64, 96), dtype('float32'))
    """

    name = "torch"

    def __init__(
        self,
        network: SegmentationNetwork,
        info: ModelInfo,
        device: str = "auto",
        precision: str = "auto",
        input_size: InputSize | None = None,
        smoothing: bool = True,
        accelerate: bool = True,
    ) -> None:
        super().__init__(input_size, smoothing)
        self.device = find_device(device)
        self.device_name = str(self.device)
        if self.device.type == "cuda":
            self.device_name += f" ({torch.cuda.get_device_name(self.device)})"
        _use_this_machine()
        if precision == "auto":
            precision = "fp16" if self.device.type == "cuda" else "fp32"
        self.precision = precision
        network = fold(network)
        self.dtype = DTYPES[precision]
        if precision != "fp32":
            round_kernels(network, self.dtype)
            network.to(self.dtype)
        elif self.device.type == "cpu":
            use_winograd(network)
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.float()  # stays in fp32, because its input is a sum of many layers
        self.mean = 255 * torch.tensor(info.mean, device=self.device).view(1, 3, 1, 1)
        self.scale = 1 / (255 * torch.tensor(info.std, device=self.device).view(1, 3, 1, 1))
        self._pixels = torch.empty(0, device=self.device)
        self._forward: Function = self._plain_forward
        self._fast_layers: Guarded | None = None
        self._transfers: Transfers | None = None
        if self.device.type == "cpu":
            release_freed_memory()
        elif accelerate:
            self._fast_layers = Guarded("The faster network", self._fast_forward(), self._plain_forward, compare=False)
            self._forward = Graphed("the network", self._fast_layers)
            self._transfers = Transfers(self.device)
            self._readout.use_kernels()

    @property
    def notes(self) -> list[str]:
        """See `Engine`."""
        parts = (self._forward, self._fast_layers, self._transfers, *self._readout.guarded)
        return [part.reason for part in parts if isinstance(part, (Graphed, Transfers, Guarded)) and part.reason]

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return super().__call__(images) if self._transfers is None else self.start(images)()

    @torch.inference_mode()
    def start(self, images: np.ndarray) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        """Start to process images N×H×W×3 uint8 RGB; the returned function waits for labels and energies.

        On CUDA the device computes in the meantime. A caller that starts a batch before it waits for the previous one
        keeps the device busy. On the CPU the result is complete when this method returns.
        """
        if self._transfers is None:
            answer = super().__call__(images)
            return lambda: answer
        started = time.perf_counter()
        pixels, begin = self._transfers.upload(images)
        waited = time.perf_counter() - started
        stream = torch.cuda.current_stream(self.device)
        prepared, inferred = timer(), timer()
        size = (images.shape[1], images.shape[2])
        seen = network_size(self.input_size, *size)
        batch = self._preprocess(pixels, seen)
        prepared.record(stream)
        (values,) = self._forward(batch)
        inferred.record(stream)
        labels, energy = self.read(Logits(values, (batch.shape[-2], batch.shape[-1]), seen), size)
        if self.smoothing:
            energy = self._readout.smooth(energy)
        copies, end = self._transfers.download((labels, energy))
        return Answer(copies, [begin, prepared, inferred, end], waited, self.timings)

    @torch.inference_mode()
    def logits(self, images: np.ndarray, input_size: InputSize | None) -> Logits:
        """See `LogitsEngine.logits`."""
        started = time.perf_counter()
        seen = network_size(input_size, images.shape[1], images.shape[2])
        batch = self._preprocess(torch.from_numpy(images).to(self.device), seen)
        self._wait()
        prepared = time.perf_counter()
        (values,) = self._forward(batch)
        self._wait()
        self.timings = {"preprocess": prepared - started, "inference": time.perf_counter() - prepared}
        return Logits(values, (batch.shape[-2], batch.shape[-1]), seen)

    def _plain_forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        return (self.network.head(self.network.trunk(batch)),)

    def _fast_forward(self) -> Function:
        """The same with fast layers, which are made at the first call, because that may fail."""

        @functools.cache
        def layers() -> Any:
            from .fast_layers import FastLayers

            return FastLayers(self.network)

        def forward(batch: Tensor) -> tuple[Tensor, ...]:
            with layers() as fast:
                return (fast.network.head(fast.network.trunk(batch)),)

        return forward

    def _preprocess(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Scale, normalise and pad images N×H×W×3 uint8 to N×3×h×w; the bytes are already channels last.

        Downscaling is antialiased, because small obstacles would otherwise fall between the samples or flicker.
        """
        pixels = images.permute(0, 3, 1, 2)
        if tuple(pixels.shape[-2:]) != size:
            pixels = F.interpolate(pixels.float(), size, mode="bilinear", antialias=True)
        if self._pixels.shape != pixels.shape:
            self._pixels = torch.empty(pixels.shape, device=self.device, memory_format=torch.channels_last)
        torch.sub(pixels, self.mean, out=self._pixels).mul_(self.scale)
        return self.network.pad(self._pixels.to(self.dtype))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _use_this_machine() -> None:
    """Set up the whole process for fast inference: keep freed memory, and use one thread per available core."""
    keep_freed_memory()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), allotted_cores()))


def find_device(name: str) -> torch.device:
    """Find the device of this name.

    Raises:
        PebalError: the device does not exist; the message lists the alternatives.

    Examples:
        >>> find_device("cpu")
        device(type='cpu')
        >>> find_device("warp")
        Traceback (most recent call last):
            ...
        pebal_core.errors.PebalError: There is no device 'warp'; use auto, cpu, cuda or cuda:N (tensorrt: .onnx models).
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise PebalError(
            f"There is no device '{name}'; use auto, cpu, cuda or cuda:N (tensorrt: .onnx models)."
        ) from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise PebalError(f"The device '{name}' is not supported; use auto, cpu, cuda or cuda:N.")
    index = device.index or 0
    if index >= torch.cuda.device_count():
        built = "with" if torch.version.cuda else "without"
        raise PebalError(
            f"The device '{name}' is not available, because PyTorch {torch.__version__}, built {built} CUDA, sees "
            f"{torch.cuda.device_count()} GPUs. Install a driver and a CUDA build of PyTorch, or set device to cpu."
        )
    return torch.device("cuda", index)
