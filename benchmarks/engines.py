"""What an image costs: engines and precisions beside the straightforward way, on the same network and images.

    python benchmarks/engines.py starter espnetv2.safetensors --sizes 512x1024 1024x2048
    python benchmarks/engines.py starter --ways torch-fp32 onnxruntime-fp32 --sizes 256x512 512x1024 1024x2048 \\
        --batches 1 2 4 --plot docs/cost.png                  # how it grows
    python benchmarks/engines.py wide_resnet38 --runs 3       # the paper's network; random weights
    python benchmarks/engines.py starter --dataset RoadObstacle21=FOLDER    # how far the ways are apart on real images

The straightforward way is the network as it was trained, eager, float32, contiguous, with argmax, energy and Gaussian
on full-resolution logits. All ways take turns in one process; a figure is the median over the turns but the first, a
ratio the median of the ratios within a turn. Processor time is that of all threads and depends less than wall time on
what else the machine does. Memory is the peak of a process of its own, less what it held after its imports; --only-time
leaves it out. That freed memory is kept (`keep_freed_memory`) is a setting of the process, so the straightforward way
gains by it here as well. ONNX Runtime runs an export for the size that is measured; its stages come from its profile:
up to the first convolution, up to the maximum over the classes, and from there. Runs on Linux.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from ways import DEFAULT_WAYS, PAPER, STAGES, WAYS, Way, exported, prepare

from pebal_core.data.anomaly_sets import open_set
from pebal_core.engines.onnx import OnnxEngine
from pebal_core.engines.selection import REST
from pebal_core.metrics.pooled import PooledMetrics

PHOTOGRAPH = Path(__file__).parents[1] / "docs/demo.jpg"


class Turn(NamedTuple):
    """One call of one way."""

    answer: tuple[np.ndarray, np.ndarray]
    wall: float
    processor: float


class Row(NamedTuple):
    """What the plot shows of a line of the table."""

    model: str
    size: tuple[int, int]
    batch: int
    way: str
    milliseconds: float
    """Of one image."""


def photographs(height: int, width: int, count: int) -> np.ndarray:
    image = cv2.imread(str(PHOTOGRAPH))
    assert image is not None
    image = cv2.resize(image[..., ::-1], (width, height), interpolation=cv2.INTER_AREA)
    return np.stack([image[:, :: (-1) ** i] for i in range(count)])


def take_turn(way: Way, images: np.ndarray) -> Turn:
    time.sleep(REST)
    wall, processor = time.perf_counter(), time.process_time()
    answer = way.run(images)
    return Turn(answer, time.perf_counter() - wall, time.process_time() - processor)


def megabytes(entry: str) -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[entry].split()[0]) / 1024


def peak_memory(way: str, model: str, images: np.ndarray) -> float:
    """Megabytes above what the process held after its imports: weights, activations and buffers."""
    held = megabytes("VmRSS")
    run = OnnxEngine(Path(model), "cpu") if model.endswith(".onnx") else prepare(way, model, "cpu", None).run
    Path("/proc/self/clear_refs").write_text("5")  # loading does not count
    run(images)
    return megabytes("VmHWM") - held


def measure_memory(way: str, model: str, size: tuple[int, int], batch: int) -> float:
    kind, _, precision = way.partition("-")
    file = str(exported(model, precision, size)) if kind == "onnxruntime" else model
    command = [sys.executable, __file__, file, "--memory", way]
    command += ["--sizes", f"{size[0]}x{size[1]}", "--batches", str(batch)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def compare(
    model: str, size: tuple[int, int], batch: int, ways: list[str], runs: int, device: str, with_memory: bool
) -> list[Row]:
    """Print one row per way."""
    images = photographs(*size, batch)
    prepared = {name: prepare(name, model, device, size) for name in ways}
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    for number in range(runs + 1):
        for name, way in prepared.items():
            turn = take_turn(way, images)
            if number:
                turns[name].append(turn)
    all_stages = {name: way.stages()[-runs:] for name, way in prepared.items()}
    del prepared
    rows = []
    for name in ways:
        first, own = turns[ways[0]], turns[name]
        stages = [1e3 * statistics.median(stages[i] for stages in all_stages[name]) for i in range(len(STAGES))]
        wall = statistics.median(turn.wall for turn in own)
        processor = statistics.median(turn.processor for turn in own)
        faster = statistics.median(a.wall / b.wall for a, b in zip(first, own, strict=True))
        cheaper = statistics.median(a.processor / b.processor for a, b in zip(first, own, strict=True))
        agreement = (own[-1].answer[0] == first[-1].answer[0]).mean()
        difference = np.abs(own[-1].answer[1] - first[-1].answer[1])
        memory = f"{measure_memory(name, model, size, batch):.0f}" if with_memory else "–"
        print(
            f"| {Path(model).stem} | {size[0]}×{size[1]} | {batch} | {name} | {stages[0]:.1f} | {stages[1]:.1f} | "
            f"{stages[2]:.1f} | {1e3 * wall / batch:.1f} | {batch / wall:.2f} | {100 * stages[2] / sum(stages):.1f} | "
            f"{processor / batch:.3f} | {faster:.2f} | {cheaper:.2f} | {memory} | {100 * agreement:.2f} | "
            f"{difference.max():.1e} | {difference.mean():.1e} |",
            flush=True,
        )
        rows.append(Row(Path(model).stem, size, batch, name, 1e3 * wall / batch))
    return rows


def compare_on(dataset: str, model: str, ways: list[str], device: str, limit: int) -> None:
    """Print how far the ways are apart on a labelled set, and the average precision of each."""
    name, _, folder = dataset.partition("=")
    data = open_set(name, folder)
    prepared = {way: prepare(way, model, device, None) for way in ways}
    metrics = {way: PooledMetrics() for way in ways}
    equal, moved, pixels = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0), 0
    count = min(limit, len(data))
    for index in range(count):
        frame = data.load(index)
        answers = {way: prepared[way].run(np.ascontiguousarray(frame.image[None])) for way in ways}
        for way, (labels, energy) in answers.items():
            equal[way] += int((labels == answers[ways[0]][0]).sum())
            moved[way] += float(np.abs(energy - answers[ways[0]][1]).sum(dtype=np.float64))
            metrics[way].update(energy[0], frame.target, name=str(data.pairs[index][0]))
        pixels += frame.target.size
    for way in ways:
        result = metrics[way].compute()
        assert result.ap is not None and result.auroc is not None, result.undefined
        print(
            f"| {Path(model).stem} | {data.name}, {count} images | {way} | {100 * equal[way] / pixels:.2f} | "
            f"{moved[way] / pixels:.1e} | {100 * result.ap:.2f} | {100 * result.auroc:.2f} |",
            flush=True,
        )


def plot(rows: list[Row], path: Path) -> None:
    """Milliseconds per image over pixels, of single images; and in a batch, as a share of a single image's."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    figure, (by_pixels, by_batch) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    markers = dict(zip(dict.fromkeys(row.size for row in rows), "os^Dvp*", strict=False))
    for model, way in dict.fromkeys((row.model, row.way) for row in rows):
        own = [row for row in rows if (row.model, row.way) == (model, way)]
        single = {row.size: row.milliseconds for row in own if row.batch == 1}
        pixels = [height * width / 1e6 for height, width in single]
        (line,) = by_pixels.plot(pixels, list(single.values()), marker="o", label=f"{model}, {way}")
        for size, marker in markers.items():
            same = [row for row in own if row.size == size and size in single]
            shares = [100 * row.milliseconds / single[size] for row in same]
            by_batch.plot([row.batch for row in same], shares, marker=marker, color=line.get_color(), alpha=0.8)
    by_pixels.set(xlabel="megapixels", ylabel="ms per image", xscale="log", yscale="log", title="single images")
    by_batch.set(xlabel="images in a batch", ylabel="% of a single image's time", title="per image of a batch")
    by_batch.set_ylim(bottom=0)
    by_batch.xaxis.get_major_locator().set_params(integer=True)
    by_pixels.legend(fontsize=8)
    handles = [Line2D([], [], color="grey", marker=m, label=f"{h}×{w}") for (h, w), m in markers.items()]
    by_batch.legend(handles=handles, fontsize=8)
    for axes in (by_pixels, by_batch):
        axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help=f"model files, shipped models, or {PAPER}")
    parser.add_argument("--sizes", nargs="+", default=["512x1024"], help="HEIGHTxWIDTH")
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--ways", nargs="+", default=list(DEFAULT_WAYS), choices=WAYS, help="compared with the first")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N, tensorrt; memory is measured on cpu only")
    parser.add_argument("--only-time", action="store_true")
    parser.add_argument("--plot", type=Path, help="draw how the cost grows with pixels and batch into this file")
    parser.add_argument("--dataset", metavar="NAME=FOLDER", help="compare on the images of an anomaly set instead")
    parser.add_argument("--images", type=int, default=sys.maxsize, help="of the set, at most")
    parser.add_argument("--memory", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = [(int(height), int(width)) for height, width in (size.split("x") for size in arguments.sizes)]
    if arguments.memory:
        print(peak_memory(arguments.memory, arguments.models[0], photographs(*sizes[0], arguments.batches[0])))
        return
    print(f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}, {arguments.runs} turns\n")
    if arguments.dataset:
        print("| model | images | way | labels equal % | energy mean diff | AP % | AUROC % |")
        print("|" + "---|" * 7)
        for model in arguments.models:
            compare_on(arguments.dataset, model, arguments.ways, arguments.device, arguments.images)
        return
    print(
        "| model | size | batch | way | preprocess ms | network ms | postprocess ms | ms/image | images/s "
        "| postprocess % | processor s/image | × faster, wall | × faster, processor | peak MB | labels equal % "
        "| energy max diff | energy mean diff |"
    )
    print("|" + "---|" * 17)
    with_memory = arguments.device == "cpu" and not arguments.only_time
    rows = []
    for model in arguments.models:
        for size in sizes:
            for batch in arguments.batches:
                rows += compare(model, size, batch, arguments.ways, arguments.runs, arguments.device, with_memory)
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
