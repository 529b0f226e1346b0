"""The ways from image to answer that `engines.py` compares."""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torchvision.transforms.v2.functional import gaussian_blur

from pebal_core.engines.onnx import OnnxEngine, session_options
from pebal_core.engines.torch import TorchEngine, find_device
from pebal_core.export import to_onnx
from pebal_core.model_file import load_model, onnx_with_info
from pebal_core.model_info import ModelInfo
from pebal_core.networks import SegmentationNetwork, build_network
from pebal_core.scores import free_energy

PAPER = "wide_resnet38"
WAYS = ("reference", "torch-fp32", "torch-bf16", "torch-fp16", "onnxruntime-fp32", "onnxruntime-fp16")
DEFAULT_WAYS = ("reference", "torch-fp32", "torch-bf16", "onnxruntime-fp32")
STAGES = ("preprocess", "inference", "postprocess")

Stages = tuple[float, ...]
"""Seconds of preprocess, network and postprocess."""


class Way(NamedTuple):
    """One way to the answer."""

    run: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    stages: Callable[[], list[Stages]]
    """Of every call so far; ends the measurement."""


def load(model: str) -> tuple[SegmentationNetwork, ModelInfo]:
    """A model file, or the paper's network with random weights: drawn so that its energies are around -12 nats."""
    if model != PAPER:
        return load_model(model)
    torch.manual_seed(0)
    network = build_network("deeplabv3plus_wide_resnet38").eval()
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if name == "final.6":
                module.weight.data.mul_(0.0025)
    return network, ModelInfo("deeplabv3plus_wide_resnet38")


class Reference:
    """The straightforward way."""

    def __init__(self, network: SegmentationNetwork, info: ModelInfo, device: str) -> None:
        self.device = find_device(device)
        self.network = network.eval().to(self.device)
        self.mean, self.std = (
            torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in (info.mean, info.std)
        )
        self.timings: dict[str, float] = {}

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        moments = [time.perf_counter()]
        with torch.inference_mode():
            pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).contiguous()
            batch = (pixels / 255 - self.mean) / self.std
            moments.append(time.perf_counter())
            logits = self.network(batch)
            moments.append(time.perf_counter())
            labels = logits[:, :-1].argmax(1).to(torch.uint8)
            result = labels.cpu().numpy(), gaussian_blur(free_energy(logits), [7, 7], [1.0, 1.0]).cpu().numpy()
            moments.append(time.perf_counter())
        self.timings = dict(zip(STAGES, np.diff(moments).tolist(), strict=True))
        return result


@functools.cache
def exported(model: str, precision: str, size: tuple[int, int] | None) -> Path:
    """An ONNX model for images of this size, or of any, in a temporary file."""
    network, info = load(model)
    info.input_size = list(size) if size else None
    info.smoothing = True  # as the other ways do
    info.export = {"precision": precision}
    path = Path(tempfile.mkdtemp(prefix="engines_", dir=scratch().name)) / f"{Path(model).stem}.onnx"
    path.write_bytes(onnx_with_info(to_onnx(network, info, precision), info))
    return path


@functools.cache
def scratch() -> tempfile.TemporaryDirectory[str]:
    """Is removed when the process ends."""
    return tempfile.TemporaryDirectory()


def prepare(way: str, model: str, device: str, size: tuple[int, int] | None) -> Way:
    """A way for images of this size, or of any."""
    kind, _, precision = way.partition("-")
    if kind == "onnxruntime":
        return onnx_way(exported(model, precision, size), device)
    network, info = load(model)
    engine: Reference | TorchEngine = (
        Reference(network, info, device) if kind == "reference" else TorchEngine(network, info, device, precision)
    )
    stages: list[Stages] = []

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        answer = engine(images)
        stages.append(tuple(engine.timings.values()))
        return answer

    return Way(run, lambda: stages)


def onnx_way(path: Path, device: str) -> Way:
    options = session_options()
    options.enable_profiling, options.profile_file_prefix = True, str(path.with_suffix(""))
    engine = OnnxEngine(path, device, options=options)
    return Way(engine, lambda: profiled_stages(Path(engine.session.end_profiling())))


def profiled_stages(profile: Path) -> list[Stages]:
    """Stages of every run of an exported model, by the kernels that begin them."""
    events = json.loads(profile.read_text())
    kernels = [event for event in events if event["name"].endswith("_kernel_time")]
    stages: list[Stages] = []
    for run in (event for event in events if event["name"] == "model_run"):
        start, end = run["ts"], run["ts"] + run["dur"]
        inside = [(event["ts"], event["args"]["op_name"]) for event in kernels if start <= event["ts"] < end]
        network = min(at for at, operator in inside if operator in ("Conv", "FusedConv", "ReorderInput"))
        readout = max(at for at, operator in inside if operator == "ReduceMax")
        stages.append(((network - start) / 1e6, (readout - network) / 1e6, (end - readout) / 1e6))
    return stages
