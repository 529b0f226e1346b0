"""Steps that only a real run makes: resumed from a checkpoint, and distributed over the processes of one device."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from training import make_batch

from pebal_core.losses import LossConfig, pebal_loss
from pebal_core.networks import SegmentationNetwork
from pebal_core.training.finetune import finetune
from pebal_core.training.finetune_module import sum_over_processes
from pebal_core.training.run import RunConfig

from .bench import Bench, Size
from .parity import difference, tf32
from .synthetic import configuration, write_outliers, write_scenes

STEPS = 4


def run(bench: Bench) -> None:
    with tf32(False):
        bench.attempt("a distributed step", distributed)
        bench.attempt("a resumed step", resumed)


class Objective(nn.Module):
    """The loss of a batch, joined over all processes, with gradients for the head."""

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(network.is_head(name))

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.network.trunk(images)
        return pebal_loss(self.network.head(features), target, LossConfig(), sum_over_processes).total


def distributed(bench: Bench) -> None:
    """nccl on the GPU, gloo on the CPU, beside the same step without processes."""
    backend = "gloo" if bench.toy else "nccl"
    images, target = (tensor.to(bench.device) for tensor in make_batch(64 if bench.toy else 256, 2))
    network = bench.load("starter")[0].to(bench.device)
    plain = copy.deepcopy(network)
    expected = pebal_loss(plain.head(tuple(f.detach() for f in plain.trunk(images))), target).total
    expected.backward()  # type: ignore[no-untyped-call]
    if not bench.toy:
        torch.cuda.set_device(0)
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        objective = DistributedDataParallel(Objective(network), device_ids=None if bench.toy else [0])
        loss = objective(images, target)
        loss.backward()
        gradients = [
            torch.cat([p.grad.flatten() for n, p in own.named_parameters() if own.is_head(n) and p.grad is not None])
            for own in (network, plain)
        ]
        gradient = difference(gradients[0], gradients[1].cpu())
        change = abs(loss.item() / expected.item() - 1)
        bench.row(
            f"a distributed step, {backend}, one process",
            loss=change,
            gradient=gradient,
            goal="both at most 0.001 of a plain step's",
            met=max(change, gradient) <= 1e-3,
        )
    finally:
        dist.destroy_process_group()


def resumed(bench: Bench) -> None:
    """``pebal train`` in one go, and stopped half-way and resumed: the same weights, but for rounding on a GPU."""
    crop = 64 if bench.toy else 256
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_scenes(root / "scenes", Size(2 * crop, 4 * crop), 8, 8)
        write_outliers(root / "outliers", 2 * crop, 4)
        accelerator = "cpu" if bench.toy else "gpu"
        options = RunConfig(steps=STEPS, batch_size=2, validate_every=STEPS, checkpoint_every=1, workers=0)
        options.accelerator, options.devices = accelerator, 1
        config = configuration(bench, root, "starter", crop, options)
        config.lr = 1e-3
        finetune(replace(config, out=str(root / "whole")))
        finetune(replace(config, trainer=replace(options, stop_after=STEPS // 2), out=str(root / "parts")))
        finetune(replace(config, trainer=replace(options, resume=True), out=str(root / "parts")))
        start, whole, parts = (
            load_file(root / name) for name in ("model.safetensors", "whole/last.safetensors", "parts/last.safetensors")
        )
        keys = [key for key in whole if whole[key].is_floating_point() and "running" not in key]
        moved = max(float((whole[key] - start[key]).abs().max()) for key in keys)
        apart = max(float((whole[key] - parts[key]).abs().max()) for key in keys)
    bench.row(
        f"{STEPS} steps, stopped after {STEPS // 2} and resumed",
        weights_moved=moved,
        resumed_differs=apart,
        goal="at most 5 % of what the weights moved",
        met=apart <= 0.05 * moved,
    )
