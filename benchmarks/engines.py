"""What an image costs: engines and precisions beside the straightforward way, on the same network and images.

    python benchmarks/engines.py starter espnetv2.safetensors --sizes 512x1024 1024x2048
    python benchmarks/engines.py starter --sizes 128x256 256x512 512x1024 1024x2048 --batches 1 2 4   # how it grows
    python benchmarks/engines.py wide_resnet38 --runs 3          # the paper's network; random weights

The straightforward way is the network as it was trained, eager, float32, contiguous, with argmax, energy and Gaussian
on full-resolution logits. All ways take turns in one process; a figure is the median over the turns but the first, a
ratio the median of the ratios within a turn. Processor time is that of all threads and depends less than wall time on
what else the machine does. Memory is the peak of a process of its own, less what it held after its imports; --only-time
leaves it out. That freed memory is kept (`keep_freed_memory`) is a setting of the process, so the straightforward way
gains by it here as well. Runs on Linux.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from pebal_core.engines.torch import TorchEngine, find_device
from pebal_core.model_file import ModelInfo, load_model
from pebal_core.networks import SegmentationNetwork, build_network
from pebal_core.scores import free_energy, gaussian_blur

PHOTOGRAPH = Path(__file__).parents[1] / "docs/demo.jpg"
PAPER = "wide_resnet38"
WAYS = ("reference", "torch-fp32", "torch-bf16", "torch-fp16")
STAGES = ("preprocess", "inference", "postprocess")


class Way(NamedTuple):
    """One way to the answer, with the seconds that its last call spent in each stage."""

    run: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    timings: Callable[[], dict[str, float]]


class Turn(NamedTuple):
    """One call of one way."""

    answer: tuple[np.ndarray, np.ndarray]
    wall: float
    processor: float
    stages: tuple[float, ...]


def load(model: str) -> tuple[SegmentationNetwork, ModelInfo]:
    """A model file, or the paper's network with weights and statistics drawn at random."""
    if model != PAPER:
        return load_model(model)
    torch.manual_seed(0)
    network = build_network("deeplabv3plus_wide_resnet38")
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
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
            result = labels.cpu().numpy(), gaussian_blur(free_energy(logits)).cpu().numpy()
            moments.append(time.perf_counter())
        self.timings = dict(zip(STAGES, np.diff(moments).tolist(), strict=True))
        return result


def prepare(way: str, model: str, device: str) -> Way:
    network, info = load(model)
    if way == "reference":
        reference = Reference(network, info, device)
        return Way(reference, lambda: reference.timings)
    engine = TorchEngine(network, info, device, precision=way.partition("-")[2])
    return Way(engine, lambda: engine.timings)


def photographs(height: int, width: int, count: int) -> np.ndarray:
    image = cv2.imread(str(PHOTOGRAPH))
    assert image is not None
    image = cv2.resize(image[..., ::-1], (width, height), interpolation=cv2.INTER_AREA)
    return np.stack([image[:, :: (-1) ** i] for i in range(count)])


def take_turn(way: Way, images: np.ndarray) -> Turn:
    wall, processor = time.perf_counter(), time.process_time()
    answer = way.run(images)
    return Turn(answer, time.perf_counter() - wall, time.process_time() - processor, tuple(way.timings().values()))


def megabytes(entry: str) -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[entry].split()[0]) / 1024


def peak_memory(way: str, model: str, images: np.ndarray) -> float:
    """Megabytes above what the process held after its imports: weights, activations and buffers."""
    held = megabytes("VmRSS")
    prepared = prepare(way, model, "cpu")
    Path("/proc/self/clear_refs").write_text("5")  # loading does not count
    prepared.run(images)
    return megabytes("VmHWM") - held


def measure_memory(way: str, model: str, size: tuple[int, int], batch: int) -> float:
    command = [sys.executable, __file__, model, "--memory", way]
    command += ["--sizes", f"{size[0]}x{size[1]}", "--batches", str(batch)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def compare(
    model: str, size: tuple[int, int], batch: int, ways: list[str], runs: int, device: str, with_memory: bool
) -> None:
    """Print one row per way."""
    images = photographs(*size, batch)
    prepared = {name: prepare(name, model, device) for name in ways}
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    for number in range(runs + 1):
        for name, way in prepared.items():
            turn = take_turn(way, images)
            if number:
                turns[name].append(turn)
    del prepared
    for name in ways:
        first, own = turns[ways[0]], turns[name]
        stages = [1e3 * statistics.median(turn.stages[i] for turn in own) for i in range(len(STAGES))]
        wall = statistics.median(turn.wall for turn in own)
        processor = statistics.median(turn.processor for turn in own)
        faster = statistics.median(a.wall / b.wall for a, b in zip(first, own, strict=True))
        cheaper = statistics.median(a.processor / b.processor for a, b in zip(first, own, strict=True))
        agreement = (own[-1].answer[0] == first[-1].answer[0]).mean()
        difference = np.abs(own[-1].answer[1] - first[-1].answer[1])
        memory = f"{measure_memory(name, model, size, batch):.0f}" if with_memory else "–"
        print(
            f"| {Path(model).stem} | {size[0]}×{size[1]} | {batch} | {name} | {stages[0]:.1f} | {stages[1]:.1f} | "
            f"{stages[2]:.1f} | {batch / wall:.2f} | {processor / batch:.3f} | {faster:.2f} | {cheaper:.2f} | "
            f"{memory} | {100 * agreement:.2f} | {difference.max():.1e} | {difference.mean():.1e} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help=f"model files, shipped models, or {PAPER}")
    parser.add_argument("--sizes", nargs="+", default=["512x1024"], help="HEIGHTxWIDTH")
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--ways", nargs="+", default=list(WAYS[:3]), choices=WAYS, help="the first is compared with")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N; memory is measured on the CPU only")
    parser.add_argument("--only-time", action="store_true")
    parser.add_argument("--memory", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with_memory = arguments.device == "cpu" and not arguments.only_time
    sizes = [(int(height), int(width)) for height, width in (size.split("x") for size in arguments.sizes)]
    if arguments.memory:
        print(peak_memory(arguments.memory, arguments.models[0], photographs(*sizes[0], arguments.batches[0])))
        return
    print(f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}, {arguments.runs} turns\n")
    print(
        "| model | size | batch | way | preprocess ms | network ms | postprocess ms | images/s | processor s/image "
        "| × faster, wall | × faster, processor | peak MB | labels equal % | energy max diff | energy mean diff |"
    )
    print("|" + "---|" * 15)
    for model in arguments.models:
        for size in sizes:
            for batch in arguments.batches:
                compare(model, size, batch, arguments.ways, arguments.runs, arguments.device, with_memory)


if __name__ == "__main__":
    main()
