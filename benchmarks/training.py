"""What a fine-tuning step costs: ours beside the straightforward way, on the same network and batch.

    python benchmarks/training.py                             # the paper's network, two crops of 128×128
    python benchmarks/training.py --model starter --crop 320 --batch 4 --runs 5

Straightforward: autograd over the whole network, and every loss map made from the whole batch's full-resolution logits.
The same is also measured with the trunk's parameters frozen, where PyTorch by itself records nothing of the trunk, so
that the two gains show apart. All take turns in one process; a figure is the median over the turns but the first, a
ratio the median of the ratios within a turn. Memory is the peak of the process within a step, weights included, less
what imports held. Runs on Linux with glibc.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from pebal_core.labels import OUTLIER, VOID
from pebal_core.losses import pebal_loss
from pebal_core.model_file import load_model
from pebal_core.networks import SegmentationNetwork, build_network
from pebal_core.scores import free_energy

PAPER = "wide_resnet38"


def make_batch(crop: int, count: int) -> tuple[Tensor, Tensor]:
    """Noise as images; labels in patches, void at the edge, an outlier in every other image."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, crop, crop, generator=generator)
    coarse = torch.randint(0, 19, (count, 8, 8), generator=generator)
    target = coarse.repeat_interleave(-(-crop // 8), 1).repeat_interleave(-(-crop // 8), 2)[:, :crop, :crop].clone()
    target[:, : crop // 16] = VOID
    target[::2, crop // 4 : crop // 2, crop // 4 : crop // 2] = OUTLIER
    return images, target


def our_step(network: SegmentationNetwork, images: Tensor, target: Tensor) -> Tensor:
    """As `pebal_core.training.finetune_module` does it."""
    with torch.no_grad():
        features = network.trunk(images)
    return pebal_loss(network.head(features), target).total


def straightforward_step(network: SegmentationNetwork, images: Tensor, target: Tensor) -> Tensor:
    """The default objective of `pebal_core.losses`, written out on full-resolution logits, batch first."""
    f = network(images)
    p, energy = f.softmax(1), free_energy(f)
    reserve = p[:, -1] / gaussian_blur(energy.square(), [7, 7], [1.0, 1.0]).clamp_min(1e-6)
    outlier = target == OUTLIER
    inlier = ~outlier & (target != VOID)
    own = p.gather(1, target.where(inlier, 0)[:, None])[:, 0]
    losses = -(own + reserve).log()
    mixed = outlier.flatten(1).any(1)[:, None, None]
    total = f.new_zeros(())
    for kind in (inlier & mixed, inlier & ~mixed):
        if kind.any():
            total = total + losses[kind].mean()
    hinge = (energy[inlier] + 12).relu().square().mean()
    differences = energy.diff(dim=-2).square().sum() + energy.diff(dim=-1).square().sum()
    energy_loss = hinge + 3e-6 * 0.5 * differences
    if outlier.any():
        gains = (p[:, :-1] + reserve[:, None]).clamp_min(1e-7).log().movedim(1, -1)[outlier]
        total = total - 0.1 * gains.mean()
        lift = (-6 - energy[outlier]).relu().square().mean()
        energy_loss = 0.5 * (hinge + lift) + 3e-6 * 0.5 * differences + 5e-4 * energy[outlier].norm()
    return total + 0.1 * energy_loss


class Step(NamedTuple):
    """What one step took and gave."""

    wall: float
    processor: float
    peak: float
    """Megabytes."""
    loss: float
    gradient: float
    """Norm over the head."""


STEPS = {
    # the loss, and whether the trunk's parameters get gradients, too
    "straightforward": (straightforward_step, True),
    "straightforward, trunk frozen": (straightforward_step, False),
    "ours": (our_step, False),
}


def load(model: str) -> SegmentationNetwork:
    """A model file, or the paper's network with random weights; statistics are frozen."""
    torch.manual_seed(0)
    return (build_network("deeplabv3plus_wide_resnet38") if model == PAPER else load_model(model)[0]).eval()


def run(name: str, network: SegmentationNetwork, images: Tensor, target: Tensor, imports: float) -> Step:
    loss_of, everything = STEPS[name]
    network.zero_grad()
    for parameter_name, parameter in network.named_parameters():
        parameter.requires_grad_(everything or network.is_head(parameter_name))
    ctypes.CDLL(None).malloc_trim(0)  # what the step before left behind
    Path("/proc/self/clear_refs").write_text("5")  # set the peak to what is held now
    wall, processor = time.perf_counter(), time.process_time()
    loss = loss_of(network, images, target)
    loss.backward()  # type: ignore[no-untyped-call]
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = megabytes("VmHWM") - imports
    gradients = [p.grad.norm() for n, p in network.named_parameters() if network.is_head(n) and p.grad is not None]
    return Step(wall, processor, peak, loss.item(), torch.stack(gradients).norm().item())


def megabytes(entry: str) -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[entry].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=PAPER, help=f"a model file, a shipped model, or {PAPER} with random weights")
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    imports = megabytes("VmRSS")
    network, batch = load(arguments.model), make_batch(arguments.crop, arguments.batch)
    turns = [{name: run(name, network, *batch, imports) for name in STEPS} for _ in range(arguments.runs + 1)][1:]

    print(f"{arguments.model}, {arguments.batch} crops of {arguments.crop}×{arguments.crop}, ", end="")
    print(f"{torch.get_num_threads()} threads, {arguments.runs} turns\n")
    print("| step | wall s | processor s | peak MB | loss | gradient | × faster, wall | × faster, processor | peak % |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in STEPS:
        own = [turn[name] for turn in turns]
        first = [turn["straightforward"] for turn in turns]
        middle = Step(*(statistics.median(column) for column in zip(*own, strict=True)))
        wall = statistics.median(a.wall / b.wall for a, b in zip(first, own, strict=True))
        processor = statistics.median(a.processor / b.processor for a, b in zip(first, own, strict=True))
        memory = statistics.median(b.peak / a.peak for a, b in zip(first, own, strict=True))
        print(
            f"| {name} | {middle.wall:.2f} | {middle.processor:.2f} | {middle.peak:.0f} | {middle.loss:.5f} | "
            f"{middle.gradient:.5f} | {wall:.2f} | {processor:.2f} | {100 * memory:.0f} |"
        )


if __name__ == "__main__":
    main()
