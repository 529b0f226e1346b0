"""What a fine-tuning step costs with the paper's protocol: ours beside the straightforward way."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from training import make_batch, our_step, straightforward_step

from pebal_core.engines.cuda import fastest_convolutions, sentence
from pebal_core.networks import SegmentationNetwork

from .bench import Bench

Loss = Callable[[SegmentationNetwork, Tensor, Tensor], Tensor]


class Way(NamedTuple):
    """How a step is made."""

    name: str
    loss: Loss
    whole: bool
    """Whether the trunk gets gradients, too."""
    bf16: bool
    choose: bool = False
    """Whether cuDNN tries its algorithms."""


BASELINE = "straightforward, whole network, fp32"
BEST = "ours, bf16, fastest convolutions"
WAYS = (
    Way("ours, bf16", our_step, False, True),
    Way(BEST, our_step, False, True, True),
    Way(BASELINE, straightforward_step, True, False),
    Way("straightforward, trunk frozen, fp32", straightforward_step, False, False),
    Way("ours, fp32", our_step, False, False),
    Way("straightforward, trunk frozen, bf16", straightforward_step, False, True),
)
"""In the order of their importance: time may run out."""
IN_A_QUICK_RUN = 3


def run(bench: Bench) -> None:
    name, crop, batch = ("starter", 64, 2) if bench.toy else ("wide_resnet38", 900, 8)
    network = bench.load(name)[0].to(bench.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train()  # statistics of the batch and live dropout, as the public code has it
    start = copy.deepcopy(network.state_dict())
    seconds: dict[str, float] = {}
    for way in WAYS[: IN_A_QUICK_RUN if bench.quick else None]:
        title, count = f"{name}, {batch} crops of {crop}×{crop}, {way.name}", batch
        step: Step | None = None
        reason = "not even one crop fits into the memory"
        while step is None and count:
            network.load_state_dict(start)
            try:
                step = measure(bench, network, way, crop, count)
            except torch.cuda.OutOfMemoryError:
                count //= 2
            except RuntimeError as error:  # what cuDNN raises where memory is short, among others
                reason = sentence(error)
                break
            network.zero_grad()
            bench.free()
        if step is None:
            bench.row(title, reason=reason)
            continue
        seconds[way.name] = step.seconds * batch / count
        more: dict[str, object] = {}
        if count < batch:
            more["reason"] = f"only {count} crops fit into the memory; the time is scaled up"
        if way.name == BEST:
            more |= bench.goal("at most 0.4 s", seconds[BEST] <= 0.4)
        bench.row(title, seconds=seconds[way.name], peak_mb=step.megabytes, loss=step.loss, **more)
    if BASELINE in seconds:
        bench.row(f"times faster than {BASELINE}", **{way: seconds[BASELINE] / each for way, each in seconds.items()})


class Step(NamedTuple):
    """What a step took and gave."""

    seconds: float
    megabytes: float | None
    loss: float


def measure(bench: Bench, network: SegmentationNetwork, way: Way, crop: int, count: int) -> Step:
    """Loss, gradients and Adam's step; images are on the device already."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(way.whole or network.is_head(name))
    optimizer = torch.optim.Adam((p for p in network.parameters() if p.requires_grad), 1e-5)
    images, target = make_batch(crop, count)
    images = images.to(bench.device, memory_format=torch.channels_last)
    target = target.to(bench.device)
    autocast: AbstractContextManager[object] = (
        torch.autocast(bench.device.type, torch.bfloat16) if way.bf16 else nullcontext()
    )
    losses = []

    def step() -> None:
        torch.manual_seed(0)
        optimizer.zero_grad()
        with autocast:
            loss = way.loss(network, images, target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())

    with fastest_convolutions() if way.choose else nullcontext():
        for _ in range(2):
            step()
        bench.wait()
        turns: list[float] = []
        started = time.perf_counter()
        while len(turns) < 5 and (not turns or time.perf_counter() - started < (2 if bench.quick else 5)):
            before = time.perf_counter()
            step()
            bench.wait()
            turns.append(time.perf_counter() - before)
        megabytes = bench.peak_megabytes(step)
    optimizer.zero_grad()
    return Step(statistics.median(turns), megabytes, losses[0].item())
