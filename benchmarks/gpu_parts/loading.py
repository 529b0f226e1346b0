"""Does data loading keep up: the paper's samples from files of the paper's size, and fine-tuning fed with them."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import lightning.pytorch as pl
import torch

from pebal_core.model_file import load_model
from pebal_core.training.finetune_module import FinetuneModule
from pebal_core.training.run import RunConfig
from pebal_core.training.samples import FinetuneData
from pebal_core.training.stream import SampleStream, stream_loader

from .bench import Bench, Size
from .synthetic import configuration, write_outliers, write_scenes

STEP = 0.4
"""Seconds that a training step may take."""
BATCH = 8


def run(bench: Bench) -> None:
    size, count, unique, crop = (Size(128, 256), 40, 4, 64) if bench.toy else (Size(1024, 2048), 2975, 64, 900)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        written = write_scenes(root / "scenes", size, count, unique)
        write_outliers(root / "outliers", 80 if bench.toy else 480, 16)
        network = "starter" if bench.toy else "wide_resnet38"
        options = RunConfig(steps=10**6, batch_size=BATCH, validate_every=10**6, precision="bf16-mixed")
        config = configuration(bench, root, network, crop, options)
        network_, info = load_model(config.model)
        data = FinetuneData(config.data, options, info.classes)
        bench.row(f"{count} scenes of {size}, {unique} of them different", bytes_of_an_image=written)
        cores = len(os.sched_getaffinity(0))
        seconds = {}
        for workers in (1, 2) if bench.toy else (4, 8) if bench.quick else (1, 2, 4, 8, 16):
            seconds[workers] = per_batch(data, workers, 2 if bench.toy else 6)
            keeps_up = {} if bench.toy else {"keeps_up_with_a_step_of_0.4_s": seconds[workers] <= STEP}
            bench.row(f"batches of {BATCH} crops of {crop}×{crop}, {workers} workers of {cores} cores",
                      seconds_per_batch=seconds[workers], **keeps_up)  # fmt: skip
        enough = [workers for workers, each in seconds.items() if each <= STEP]
        options.workers = 1 if bench.toy else min(enough, default=cores)
        options.accelerator, options.devices = "cpu" if bench.toy else "gpu", 1
        options.steps = min(4 * options.workers + 4, 40)  # the loader is a few batches ahead at the beginning
        module = FinetuneModule(network_, info, config)
        title = f"{network}, {BATCH} crops of {crop}×{crop}"
        bench.attempt("training from files", fit, module, data, root, options, title)


def per_batch(data: FinetuneData, workers: int, batches: int) -> float:
    """Seconds between batches once every worker has delivered one."""
    batches = max(batches, 2 * workers)
    stream = SampleStream(data.draw, 1, 0, BATCH * (batches + workers), BATCH)
    iterator = iter(stream_loader(stream, workers))
    for _ in range(workers):
        next(iterator)
    started = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    return (time.perf_counter() - started) / batches


class Clock(pl.Callback):
    """When each step was over."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.moments = bench, list[float]()

    def on_train_batch_end(self, *_: object) -> None:
        self.bench.wait()
        self.moments.append(time.perf_counter())


def fit(bench: Bench, module: FinetuneModule, data: FinetuneData, root: Path, options: RunConfig, title: str) -> None:
    """What ``pebal train`` does, without its checkpoints and evaluations."""
    clock = Clock(bench)
    trainer = pl.Trainer(
        accelerator=options.accelerator,
        devices=1,
        precision="bf16-mixed",
        max_steps=options.steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=root,
        callbacks=[clock],
    )

    def train() -> None:
        trainer.fit(module, datamodule=data)

    megabytes = bench.peak_megabytes(train)
    moments = torch.tensor(clock.moments, dtype=torch.float64)
    half = len(moments) // 2
    each = float((moments[-1] - moments[half]) / (len(moments) - 1 - half))
    bench.row(
        f"{title}, fed from files by {options.workers} workers",
        seconds_per_step=each,
        peak_mb=megabytes,
        hours_of_40_epochs=each * 16360 / 3600,
        **bench.goal(f"at most {STEP:g} s", each <= STEP),
    )
