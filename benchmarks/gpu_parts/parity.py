"""Does the GPU say what the CPU says: logits, labels, energies, losses and gradients."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pebal_core.engines.torch import TorchEngine
from pebal_core.labels import OUTLIER, VOID
from pebal_core.losses import pebal_loss
from pebal_core.networks import SegmentationNetwork

from .bench import Bench, Size, Straightforward, average_precision, normalised, scenes

ALLOWED = 1e-3
"""Greatest difference in fp32 without TF32, as a share of the standard deviation."""


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether convolutions and matrix products on CUDA may round float32 inputs to 10 bits."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def run(bench: Bench) -> None:
    size = Size(64, 96) if bench.toy else Size(256, 512)
    names = ["starter"] if bench.toy and bench.quick else ["starter", "espnetv2", "wide_resnet38"]
    images, masks = scenes(size, 2)
    for name in names:
        bench.attempt(f"{name}: plain network and objective", logits_and_gradients, name, images, masks)
        bench.attempt(f"{name}: engine", energies, name, images, masks)


def difference(value: Tensor, expected: Tensor) -> float:
    """Greatest absolute difference as a share of the standard deviation."""
    value, expected = value.detach().cpu().double(), expected.detach().double()
    return float((value - expected).abs().max() / expected.std())


class Found(NamedTuple):
    """What one device says of a network in training."""

    logits: Tensor
    loss: Tensor
    gradient: Tensor
    """Of all parameters of the head."""


def objective(network: SegmentationNetwork, images: Tensor, target: Tensor) -> Found:
    with torch.no_grad():
        features = network.trunk(images)
    logits = network.head(features)
    loss = pebal_loss(logits, target).total
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad.flatten() for n, p in network.named_parameters() if network.is_head(n) and p.grad is not None]
    return Found(logits, loss, torch.cat(gradients))


def logits_and_gradients(bench: Bench, name: str, images: np.ndarray, masks: np.ndarray) -> None:
    """The plain network in fp32: on the CPU, and in channels-last order on the device."""
    target = torch.from_numpy(masks).long() * OUTLIER  # class 0, road, but for the outliers
    target[:, :8] = VOID
    network, info = bench.load(name)
    batch, device = normalised(images, info), bench.device
    with tf32(False):
        expected = objective(copy.deepcopy(network), batch, target)
        network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        found = objective(network, batch.to(device), target.to(device))
    logits, gradient = difference(found.logits, expected.logits), difference(found.gradient, expected.gradient)
    loss = abs(found.loss.item() / expected.loss.item() - 1)
    bench.row(
        f"{name}, fp32: plain network and objective",
        logits=logits,
        loss=loss,
        gradient=gradient,
        goal=f"each at most {ALLOWED:g} of the deviation",
        met=max(logits, loss, gradient) <= ALLOWED,
    )


def energies(bench: Bench, name: str, images: np.ndarray, masks: np.ndarray) -> None:
    """The engine in every precision beside the straightforward way in fp32 on the CPU."""
    labels, energy = Straightforward(*bench.load(name), torch.device("cpu"), half=False)(images)
    before = average_precision(energy, masks)
    for precision in ("fp32", "fp16") if bench.quick else ("fp32", "tf32", "fp16", "bf16"):
        with tf32(precision != "fp32"):
            engine = TorchEngine(*bench.load(name), str(bench.device), precision.replace("tf32", "fp32"))
            answer = [engine(images) for _ in range(2)][-1]  # the second comes from a graph, where there is one
        moved = np.abs(answer[1] - energy)
        ap = average_precision(answer[1], masks)
        exact = precision == "fp32"
        worst = float(moved.max() / energy.std())
        goal = {"goal": f"worst at most {ALLOWED:g}", "met": worst <= ALLOWED} if exact else {}
        bench.row(
            f"{name}, {precision}: engine",
            labels_equal_percent=100 * float((answer[0] == labels).mean()),
            energy_mean_nats=float(moved.mean()),
            energy_worst_of_deviation=worst,
            ap_percent=ap,
            ap_change_percent=ap - before,
            notes=engine.notes,
            **goal,
        )
