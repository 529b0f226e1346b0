"""What an image costs, bytes in, labels and energy out: the engine beside the straightforward way."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pebal_core.engines.readout import Readout, read_plainly
from pebal_core.engines.torch import TorchEngine
from pebal_core.scores import gaussian_blur

from .bench import Bench, Size, Straightforward, scenes

IN_FLIGHT = 2
"""Batches that are begun before the answer to the first is asked for."""
KERNELS = 8
"""Kernels that are listed with the time they take."""


def run(bench: Bench) -> None:
    size, large = (Size(64, 96), Size(64, 128)) if bench.toy else (Size(512, 1024), Size(1024, 2048))
    batch = 2 if bench.toy else 16
    for name in ("starter",) if bench.toy and bench.quick else ("starter", "espnetv2"):
        bench.attempt(f"{name} alone", single, name, size, 3.0)
        bench.attempt(f"{name} in batches", batches, name, size, batch)
    bench.attempt("readout", readouts, size, large)
    if not (bench.toy and bench.quick):
        bench.attempt("wide_resnet38 alone", single, "wide_resnet38", large, 40.0)


def engine_of(name: str, bench: Bench, precision: str, accelerate: bool = True) -> TorchEngine:
    return TorchEngine(*bench.load(name), str(bench.device), precision, accelerate=accelerate)


def single(bench: Bench, name: str, size: Size, allowed: float) -> None:
    """One image at a time; ``allowed`` milliseconds in the engine's fastest precision are the goal."""
    images, _ = scenes(size, 1)
    runs = 3 if bench.toy else 10 if bench.quick or name == "wide_resnet38" else 30
    first = 0.0

    def measure(way: str, answer: Callable[[np.ndarray], Any], goal: bool = False) -> None:
        nonlocal first
        milliseconds = 1e3 * bench.seconds(lambda: answer(images), runs)
        first = first or milliseconds
        figures: dict[str, Any] = {"ms": milliseconds, "times_faster": first / milliseconds}
        figures["reserved_mb"] = bench.peak_megabytes(lambda: answer(images), reserved=True)
        if isinstance(answer, TorchEngine):
            stages = []
            for _ in range(runs):
                answer(images)
                stages.append(dict(answer.timings))
            figures |= {f"{s}_ms": 1e3 * statistics.median(turn[s] for turn in stages) for s in stages[0]}
            figures["notes"] = answer.notes
        if goal:
            figures |= bench.goal(f"at most {allowed:g} ms", milliseconds <= allowed)
        bench.row(f"{name} {size}, {way}", **figures)
        if goal and not bench.toy:
            bench.attempt("kernels", kernels, f"{name} {size}, {way}: ms by kernel", lambda: answer(images))

    for half in (False,) if bench.toy else (False, True):
        measure(f"straightforward {'fp16' if half else 'fp32'}", Straightforward(*bench.load(name), bench.device, half))
        bench.free()
    fastest = "fp32" if bench.toy else "fp16"
    measure(f"engine {fastest}, eager", engine_of(name, bench, fastest, accelerate=False))
    bench.free()
    measure(f"engine {fastest}", engine_of(name, bench, fastest), goal=True)
    bench.free()
    for precision in () if bench.toy or bench.quick else ("bf16", "fp32"):
        measure(f"engine {precision}", engine_of(name, bench, precision))
        bench.free()


def kernels(bench: Bench, title: str, call: Callable[[], Any]) -> None:
    """Milliseconds on the device of the kernels that take the most."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
    times = [(event.key, event.self_device_time_total / 1e3) for event in profile.key_averages()]
    times = [(key, milliseconds) for key, milliseconds in times if milliseconds > 0]
    longest = sorted(times, key=lambda pair: -pair[1])[:KERNELS]
    bench.row(title, all=sum(m for _, m in times), longest={key[:80]: round(m, 4) for key, m in longest})


def batches(bench: Bench, name: str, size: Size, count: int) -> None:
    """Images per second of full batches, one after the other and overlapped."""
    images, _ = scenes(size, count)
    rounds = 2 if bench.toy else 10
    plain = Straightforward(*bench.load(name), bench.device, half=not bench.toy)
    rates = {"straightforward": count / bench.seconds(lambda: plain(images), rounds // 2, 1)}
    engine = engine_of(name, bench, "auto")
    rates["engine"] = count / bench.seconds(lambda: engine(images), rounds)

    def overlapped() -> None:
        begun: deque[Callable[[], Any]] = deque()
        for _ in range(rounds):
            begun.append(engine.start(images))
            if len(begun) == IN_FLIGHT:
                begun.popleft()()
        while begun:
            begun.popleft()()

    rates["engine, overlapped"] = rounds * count / bench.seconds(overlapped, 3, 1)
    for way, rate in rates.items():
        goal = bench.goal("at least 1000 images per second", rate >= 1000) if "overlapped" in way else {}
        bench.row(
            f"{name} {size}, batches of {count}, {way} {engine.precision}",
            images_per_second=rate,
            times_faster=rate / rates["straightforward"],
            notes=engine.notes,
            **goal,
        )


def readouts(bench: Bench, *sizes: Size) -> None:
    """Upsampling, energy, argmax and Gaussian: with full-resolution logits, and without."""
    for size, shrink in zip(sizes, (4, 2)):
        logits = torch.randn(1, 20, size.height // shrink, size.width // shrink, device=bench.device)
        if not bench.toy:
            logits = logits.half().to(memory_format=torch.channels_last)
        readout = Readout()
        readout.use_kernels()

        def ours(logits: torch.Tensor = logits, size: Size = size, readout: Readout = readout) -> None:
            _, energy = readout(logits, size, size)
            readout.smooth(energy)

        def eager(logits: torch.Tensor = logits, size: Size = size) -> None:
            _, energy = read_plainly(logits, size, size)
            gaussian_blur(energy)

        runs = 3 if bench.toy else 30
        with torch.inference_mode():
            before, after = (1e3 * bench.seconds(call, runs) for call in (eager, ours))
            megabytes = [bench.peak_megabytes(call) for call in (eager, ours)]
        bench.row(
            f"readout {size} from 1/{shrink}",
            eager_ms=before,
            fused_ms=after,
            times_faster=before / after,
            eager_mb=megabytes[0],
            fused_mb=megabytes[1],
            notes=[part.reason for part in readout.guarded if part.reason],
        )
