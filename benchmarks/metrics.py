"""Streaming pixel metrics beside scikit-learn on concatenated pixels: time, memory, and the figures they agree on.

    python benchmarks/metrics.py                                    # 20 frames of 1024×2048, both ways
    python benchmarks/metrics.py --frames 20 40 80 --only streaming      # does the cost stay linear?

Each measurement is a process of its own, which reads the same frames from disk. Its time excludes the reading;
its memory is the peak above what the process held after its imports, with one frame loaded. Runs on Linux.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

HEIGHT, WIDTH = 1024, 2048


def write_frames(folder: Path, count: int) -> None:
    """Energies as of a network: smooth, inliers around -11, objects higher; the lowest sixteenth void."""
    generator = np.random.default_rng(0)
    columns, rows = np.arange(WIDTH) / 16, np.arange(HEIGHT) / 16
    for i in range(count):
        coarse = generator.normal(-11, 3, (HEIGHT // 16 + 2, WIDTH // 16 + 2))
        fine = np.stack([np.interp(columns, np.arange(coarse.shape[1]), row) for row in coarse])
        below = rows.astype(int)
        weight = (rows - below)[:, None]
        score = (1 - weight) * fine[below] + weight * fine[below + 1] + generator.normal(0, 0.2, (HEIGHT, WIDTH))
        target = np.zeros((HEIGHT, WIDTH), np.uint8)
        target[-HEIGHT // 16 :] = 255
        for _ in range(4):
            y, x, size = generator.integers(0, 600), generator.integers(0, 1900), generator.integers(20, 120)
            target[y : y + size, x : x + size] = 1
        score[target == 1] += 4
        np.save(folder / f"{i}_score.npy", score.astype(np.float32))
        np.save(folder / f"{i}_target.npy", target)


def read_frames(folder: Path, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for i in range(count):
        yield np.load(folder / f"{i}_score.npy"), np.load(folder / f"{i}_target.npy")


class Meter:
    """Wall and processor time between `start` and `stop`, summed up, and the peak of memory since it was made."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        Path("/proc/self/clear_refs").write_text("5")  # set the peak to what is held now
        self._held = _megabytes("VmRSS")

    def start(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.wall += time.perf_counter() - self._wall
        self.cpu += time.process_time() - self._cpu

    def read(self) -> dict[str, float]:
        return {"wall": self.wall, "cpu": self.cpu, "memory": _megabytes("VmHWM") - self._held}


def _megabytes(entry: str) -> float:
    # Not getrusage: its peak includes that of the parent process before the fork.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[entry].split()[0]) / 1024


def measure_streaming(folder: Path, count: int) -> dict[str, Any]:
    from pebal_core.metrics.pooled import PooledMetrics

    held = next(read_frames(folder, 1))
    meter = Meter()
    del held
    metrics = PooledMetrics()
    for i, (score, target) in enumerate(read_frames(folder, count)):
        meter.start()
        metrics.update(score, target, name=str(i))
        meter.stop()
    meter.start()
    result = metrics.compute()
    meter.stop()
    figures = {key: getattr(result, key) for key in ("auroc", "ap", "fpr95", "best_f1")}
    return {**meter.read(), **figures}


def measure_reference(folder: Path, count: int) -> dict[str, Any]:
    """Keep every pixel, join them, and sort them once for each curve: what evaluation scripts of the field do."""
    from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

    held = next(read_frames(folder, 1))
    meter = Meter()
    del held
    frames = list(read_frames(folder, count))
    meter.start()
    scores = np.array([score for score, _ in frames])
    targets = np.array([target for _, target in frames])
    outliers, inliers = scores[targets == 1], scores[targets == 0]
    score = np.concatenate([inliers, outliers])
    label = np.concatenate([np.zeros(len(inliers)), np.ones(len(outliers))])
    fpr, tpr, _ = roc_curve(label, score)
    figures = {"auroc": auc(fpr, tpr), "ap": average_precision_score(label, score), "fpr95": fpr[tpr >= 0.95][0]}
    precision, recall, _ = precision_recall_curve(label, score)
    figures["best_f1"] = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300))
    meter.stop()
    figures = {key: float(value) for key, value in figures.items()}
    return {**meter.read(), **figures}


MEASURES = {"streaming": measure_streaming, "reference": measure_reference}


def measure(path: str, folder: Path, count: int, runs: int) -> dict[str, float]:
    """Median of several runs, each in a process of its own."""
    command = [sys.executable, __file__, "--measure", path, "--folder", str(folder), "--frames", str(count)]
    results = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(runs)]
    return {key: statistics.median(result[key] for result in results) for key in results[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[20])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=MEASURES)
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(MEASURES[arguments.measure](arguments.folder, arguments.frames[0])))
        return

    print("| frames | path | processor s | wall s | peak MB | AUROC | AP | FPR95 | best F1 |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        write_frames(Path(name), max(arguments.frames))
        for count in arguments.frames:
            rows = {}
            for path in [arguments.only] if arguments.only else MEASURES:
                row = rows[path] = measure(path, Path(name), count, arguments.runs)
                figures = " | ".join(f"{row[key]:.12f}" for key in ("auroc", "ap", "fpr95", "best_f1"))
                costs = f"{row['cpu']:.2f} | {row['wall']:.2f} | {row['memory']:.0f}"
                print(f"| {count} | {path} | {costs} | {figures} |", flush=True)
            if len(rows) == 2:
                ours, theirs = rows["streaming"], rows["reference"]
                ratios = [theirs[key] / ours[key] for key in ("cpu", "wall", "memory")]
                agree = max(abs(ours[key] - theirs[key]) for key in ("auroc", "ap", "fpr95", "best_f1"))
                print(
                    f"\n{count} frames: {ratios[0]:.1f}× less processor time, {ratios[1]:.1f}× less "
                    f"wall time, {ratios[2]:.0f}× less memory; the figures agree to {agree:.1e}.\n"
                )


if __name__ == "__main__":
    main()
