"""What the parts of the GPU benchmark share: where they run, clocks, networks, images, and how they report."""

from __future__ import annotations

import copy
import gc
import json
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pebal_core.data.cutouts import random_blob
from pebal_core.engines.cuda import sentence
from pebal_core.metrics.pooled import PooledMetrics
from pebal_core.model_file import load_model
from pebal_core.model_info import ModelInfo
from pebal_core.networks import SegmentationNetwork, build_network

PHOTOGRAPH = Path(__file__).parents[2] / "docs/demo.jpg"
NETWORKS = {
    "wide_resnet38": "deeplabv3plus_wide_resnet38",
    "espnetv2": "espnetv2",
    "starter": "",  # the shipped model
}


class Size(NamedTuple):
    """Height and width."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}×{self.width}"


class Bench:
    """Where a part runs, and where its figures go.

    Args:
        device: ``cuda`` or ``cpu``; on the CPU everything has toy size.
        quick: fewer networks, sizes and turns.
        out: file that gets one line of JSON per row, so that a part that is stopped loses none.
    """

    def __init__(self, device: str, quick: bool, out: Path) -> None:
        self.device, self.quick, self.out = torch.device(device), quick, out
        self.toy = device == "cpu"
        self._loaded: dict[str, tuple[SegmentationNetwork, ModelInfo]] = {}

    def row(self, name: str, **figures: Any) -> None:
        """Report figures: numbers, texts or lists of them."""
        with self.out.open("a") as stream:
            stream.write(json.dumps({"name": name, **{k: _plain(v) for k, v in figures.items()}}) + "\n")

    def attempt(self, title: str, measure: Callable[..., None], *arguments: Any) -> None:
        """Measure something without which the rest of the part makes sense: a failure becomes a row."""
        try:
            measure(self, *arguments)
        except Exception as error:  # of the device, a compiler, a profiler, …
            traceback.print_exc()
            self.row(title, reason=sentence(error))
        self.free()

    def wait(self) -> None:
        if not self.toy:
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], Any], runs: int, warm_up: int = 2) -> float:
        """Median of the seconds that a call takes until the device is idle again."""
        for _ in range(warm_up):
            call()
        self.wait()
        turns = []
        for _ in range(runs):
            started = time.perf_counter()
            call()
            self.wait()
            turns.append(time.perf_counter() - started)
        return statistics.median(turns)

    def peak_megabytes(self, call: Callable[[], Any], reserved: bool = False) -> float | None:
        """Greatest memory that tensors held on the GPU during a call, weights included; None on the CPU.

        Args:
            reserved: what PyTorch took from the GPU instead: with it comes what graphs hold for their activations.
        """
        if self.toy:
            call()
            return None
        self.wait()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        self.wait()
        peak = torch.cuda.max_memory_reserved if reserved else torch.cuda.max_memory_allocated
        return peak(self.device) / 1e6

    def free(self) -> None:
        """Give back what PyTorch keeps of the GPU's memory."""
        if not self.toy:
            gc.collect()
            torch.cuda.empty_cache()

    def goal(self, text: str, met: bool) -> dict[str, Any]:
        """Part of a row: a goal and whether it is met; nothing at toy size, where no speed means anything."""
        return {} if self.toy else {"goal": text, "met": bool(met)}

    def load(self, name: str) -> tuple[SegmentationNetwork, ModelInfo]:
        """A network of `NETWORKS` on the CPU, in eval mode, the caller's own."""
        if name not in self._loaded:
            self._loaded[name] = make(name, self.device)
        return copy.deepcopy(self._loaded[name])


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}") if np.isfinite(value) else str(value)
    return value if isinstance(value, (int, str, bool, list, dict, type(None))) else str(value)


def make(name: str, device: torch.device) -> tuple[SegmentationNetwork, ModelInfo]:
    """A network of `NETWORKS` on the CPU, in eval mode: the shipped starter, or random weights, drawn on a device.

    Random weights get the BatchNorm statistics of a photograph and logits that spread over some nats, so that
    activations have the size that those of a trained network have, and labels are not decided by rounding.
    """
    if name == "starter":
        network, info = load_model("starter")
        return network.eval(), info
    torch.manual_seed(0)
    with device:
        network, info = build_network(NETWORKS[name]), ModelInfo(NETWORKS[name])
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of all that is seen
    network.train()
    images = normalised(scenes(Size(64, 96), 2)[0], info).to(device)
    with torch.no_grad():
        network(images)
        last = [module for module in network.eval().modules() if isinstance(module, nn.Conv2d)][-1]
        scale = 4 / network(images).std()
        last.weight.mul_(scale)
        if last.bias is not None:
            last.bias.mul_(scale)
    return network.cpu(), info


def photograph(size: Size) -> np.ndarray:
    """H×W×3 uint8 RGB: a road."""
    image = cv2.imread(str(PHOTOGRAPH), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    how = cv2.INTER_AREA if image.shape[0] > size.height else cv2.INTER_CUBIC
    return cv2.resize(image, (size.width, size.height), interpolation=how)


def scenes(size: Size, count: int) -> tuple[np.ndarray, np.ndarray]:
    """N×H×W×3 uint8 RGB: the road, shifted and mirrored, with shapes of noise on it; and where these are, N×H×W."""
    rng = np.random.default_rng(0)
    road = photograph(size)
    images = np.stack([np.roll(road[:, :: (-1) ** i], i * size.width // 7, axis=1) for i in range(count)])
    masks = np.zeros(images.shape[:3], np.uint8)
    for image, mask in zip(images, masks):
        for _ in range(3):
            height, width = size.height // 6, size.width // 8
            top = int(rng.integers(size.height // 3, size.height - height))
            left = int(rng.integers(0, size.width - width))
            shape = random_blob(height, width, rng)
            noise = cv2.resize(rng.integers(0, 256, (12, 12, 3), np.uint8), (width, height))
            image[top : top + height, left : left + width][shape] = noise[shape]
            mask[top : top + height, left : left + width][shape] = 1
    return images, masks


def normalised(images: np.ndarray, info: ModelInfo) -> Tensor:
    """N×H×W×3 uint8 → N×3×H×W float32."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (info.mean, info.std))
    return (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std


def average_precision(energies: np.ndarray, masks: np.ndarray) -> float:
    """Per cent."""
    metrics = PooledMetrics()
    for energy, mask in zip(energies, masks):
        metrics.update(energy, mask, name="a scene")
    result = metrics.compute()
    assert result.ap is not None
    return 100 * result.ap


def eager_blur(energy: Tensor) -> Tensor:
    """The Gaussian as most would write it: one convolution with reflected borders."""
    bell = torch.exp(-0.5 * torch.arange(-3.0, 4.0, device=energy.device) ** 2)
    bell = bell / bell.sum()
    return F.conv2d(F.pad(energy[:, None], (3, 3, 3, 3), mode="reflect"), torch.outer(bell, bell)[None, None])[:, 0]


class Straightforward:
    """Image bytes to labels and energy as most would write it: eager, contiguous, on full-resolution logits.

    Args:
        half: whether the network runs in fp16; else in fp32.
    """

    def __init__(self, network: SegmentationNetwork, info: ModelInfo, device: torch.device, half: bool) -> None:
        self.dtype, self.device = torch.float16 if half else torch.float32, device
        self.network = network.eval().to(device, self.dtype)
        self.mean, self.std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (info.mean, info.std))

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).contiguous()
        logits = self.network(((pixels / 255 - self.mean) / self.std).to(self.dtype)).float()
        labels = logits[:, :-1].argmax(1).to(torch.uint8)
        energy = eager_blur(-torch.logsumexp(logits[:, :-1], 1))
        return labels.cpu().numpy(), energy.cpu().numpy()
