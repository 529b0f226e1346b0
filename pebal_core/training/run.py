"""Code that every training shares: options of a run, the trainer, numbered samples, checkpoints, resuming.

There is one process per device. This command starts several, on one machine or many:

    torchrun --nproc-per-node N [--nnodes M --rdzv-endpoint HOST:PORT] -m pebal_core train …

Sample ``i`` of a run and the dropout of step ``s`` depend on the seed alone. A run that was killed therefore continues
from its last checkpoint as if it had not been interrupted. The results are bit-identical on the same machine with the
same number of threads.
"""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import PebalError
from ..files import write_atomically
from ..metrics.alarms import Alarms
from ..metrics.pooled import PooledMetrics
from ..metrics.segmentation import SegmentationMetrics
from ..model_info import ModelInfo
from ..networks import SegmentationNetwork
from ..ranges import COUNT, SEED, check_ranges
from .stream import NumberedScenes, Sample, SampleStream, stream_loader

CHECKPOINT = "last.ckpt"
RESTORED = ("state_dict", "loops", "optimizer_states", "lr_schedulers", "callbacks", "global_step")
"""Entries of a checkpoint without which a run cannot continue identically."""

Metric = TypeVar("Metric", PooledMetrics, SegmentationMetrics, Alarms)


@dataclass(kw_only=True)
class RunConfig:
    """Length, hardware, logging and checkpoints of a run.

    Examples:
        >>> RunConfig(steps=5000, batch_size=4, accumulate=2).validate_every
        250
    """

    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 8
    """Samples in a batch of one process."""
    accumulate: int = 1
    """Number of batches whose gradients are averaged in one step."""
    clip: float = 0.0
    """Greatest norm of the gradient; 0: no clipping."""
    validate_every: int = 250
    """Steps between evaluations."""
    checkpoint_every: int = 100
    """Steps between checkpoints from which a run can be resumed."""
    stop_after: int | None = None
    """Stop at this step and leave a checkpoint to resume from; the schedule is still for all steps."""
    workers: int = 1
    """Number of processes that prepare samples, per training process."""
    seed: int = 1
    accelerator: str = "auto"
    devices: int | str = "auto"
    nodes: int = 1
    """torchrun sets both where it started the process."""
    precision: str = "32-true"
    """Lightning's name; bf16-mixed halves the time on GPUs and CPUs with AVX-512 BF16 or AMX, and is slow on others."""
    resume: bool = False
    """Continue from the last checkpoint of the same run."""
    wandb: str | None = None
    """Log to this Weights & Biases project as well; the key comes from ``wandb login`` and is never stored."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            steps=COUNT,
            batch_size=(1, 65_536),
            accumulate=(1, 65_536),
            clip=(0, 1e9),
            validate_every=COUNT,
            checkpoint_every=COUNT,
            stop_after=COUNT,
            workers=(0, 1024),
            seed=SEED,
            devices=(1, 1024),
            nodes=(1, 65_536),
        )


class TrainingData(pl.LightningDataModule, ABC):
    """Numbered training samples and numbered validation scenes of a run.

    The numbers are distributed over the processes of a run and continue where its checkpoint ends. A sample therefore
    belongs to the same step, whatever the number of processes, workers and restarts. The module has no state, neither
    in memory nor in checkpoints.

    Args:
        run: gives the seed, the batch size, the number of steps and of workers.
    """

    def __init__(self, run: RunConfig) -> None:
        super().__init__()
        self.run = run

    def __getstate__(self) -> dict[str, Any]:
        # Workers that are not forked get a pickled copy. They need no trainer, and not every trainer can be pickled.
        return {**self.__dict__, "trainer": None}

    @abstractmethod
    def draw(self, rng: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Make the sample of this number: image h×w×3 uint8 RGB and labels h×w uint8."""

    @property
    @abstractmethod
    def evaluated(self) -> int:
        """Number of scenes in an evaluation."""

    @abstractmethod
    def load_evaluated(self, number: int) -> Any:
        """Load the scene of this number in the form that the module's ``validation_step`` takes."""

    @property
    def attached(self) -> pl.Trainer:
        """The trainer that uses this data."""
        assert self.trainer is not None
        return self.trainer

    @property
    def samples_per_step(self) -> int:
        """Number of samples that all processes together use in one step."""
        return self.run.batch_size * self.run.accumulate * self.attached.world_size

    def batch_numbers(self, batch_index: int) -> range:
        """Numbers of the samples in this process's current batch."""
        trainer = self.attached
        batch = trainer.global_step * self.run.accumulate + batch_index % self.run.accumulate
        first = (batch * trainer.world_size + trainer.global_rank) * self.run.batch_size
        return range(first, first + self.run.batch_size)

    def train_dataloader(self) -> DataLoader[Sample]:
        stream = SampleStream(
            self.draw,
            self.run.seed,
            start=self.attached.global_step * self.samples_per_step,
            stop=self.run.steps * self.samples_per_step,
            batch_size=self.run.batch_size,
            rank=self.attached.global_rank,
            world_size=self.attached.world_size,
        )
        return stream_loader(stream, self.run.workers)

    def val_dataloader(self) -> NumberedScenes:
        numbers = range(self.attached.global_rank, self.evaluated, self.attached.world_size)
        return NumberedScenes(self.load_evaluated, numbers)


class TrainingModule(pl.LightningModule, ABC):
    """Trains one network on the numbered samples of a `TrainingData`."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: SegmentationNetwork, run: RunConfig, info: ModelInfo) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.run, self.info = run, info
        self.begun = False
        """Whether the first batch has begun; by then a checkpoint is restored completely."""
        self.register_buffer("mean", 255 * torch.tensor(info.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(info.std).view(1, 3, 1, 1), persistent=False)

    @property
    def data(self) -> TrainingData:
        """The data that the trainer uses."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, TrainingData)
        return data

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        self.begun = True
        # Only dropout still draws from torch's generator, so it is the same after a restart.
        torch.manual_seed(self.run.seed * 1_000_003 + self.data.batch_numbers(batch_index)[0])

    def normalise(self, images: Tensor) -> Tensor:
        """B×3×H×W uint8 → the input of the network."""
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def image_tensor(self, image: np.ndarray) -> Tensor:
        """H×W×3 uint8 → 1×3×H×W on the device, normalised."""
        return self.normalise(torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None])

    def joint(self, metrics: Metric) -> Metric:
        """Merge a metric over all ranks."""
        if self.trainer.world_size == 1:
            return metrics
        states: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(states, metrics.state_dict())
        every: list[Any] = [type(metrics).from_state(state) for state in states]
        for other in every[1:]:
            every[0].merge(other)
        return every[0]

    def identity(self) -> dict[str, Any]:
        """Properties that must be equal for a checkpoint to continue this run."""
        return {
            "network": f"{self.info.network} {self.info.network_args}",
            "class list": ", ".join(self.info.class_names),
            "seed": self.run.seed,
            "steps": self.run.steps,
            "samples per step": self.data.samples_per_step,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["pebal"] = self.identity()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if missing := [key for key in RESTORED if key not in checkpoint]:  # Lightning would go on without some
            raise PebalError(f"The checkpoint is damaged, because it has no {missing[0]}. Start over without resume.")
        stored = checkpoint.get("pebal", {})
        for key, value in self.identity().items():
            if stored.get(key) != value:
                raise PebalError(
                    f"The checkpoint belongs to another run. Its {key} is {stored.get(key)}, but here it is {value}. "
                    "Restore that option, or start in another output folder."
                )


class _AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, and reports a full disk in one clear sentence."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getvalue())


class AveragedWeights(EMAWeightAveraging):
    """Keeps the averaged weights in the network until the module has seen the figures of an evaluation."""

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pass

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)


def make_trainer(run: RunConfig, folder: Path, callbacks: Sequence[Callback] = ()) -> pl.Trainer:
    """Make the trainer of a run that writes logs and checkpoints to a folder.

    Raises:
        PebalError: Weights & Biases is requested but not installed.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = RunConfig(steps=5, accelerator="cpu", devices=1)
        ...     make_trainer(run, Path(folder)).max_steps
        5
    """
    loggers: list[Logger] = [CSVLogger(folder, "log", ""), TensorBoardLogger(folder, "log", "")]
    if run.wandb is not None:
        try:
            loggers.append(WandbLogger(project=run.wandb, save_dir=folder, log_model=False))
        except ModuleNotFoundError as error:
            raise PebalError(
                "Weights & Biases is not installed. Run pip install wandb, or set wandb to null."
            ) from error
    devices, nodes = run.devices, run.nodes
    if "LOCAL_WORLD_SIZE" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    checkpoints = ModelCheckpoint(
        folder, Path(CHECKPOINT).stem, every_n_train_steps=run.checkpoint_every, enable_version_counter=False
    )
    return pl.Trainer(
        accelerator=run.accelerator,
        devices=devices,
        num_nodes=nodes,
        precision=run.precision,  # type: ignore[arg-type]
        max_steps=run.stop_after or run.steps,
        accumulate_grad_batches=run.accumulate,
        gradient_clip_val=run.clip or None,
        val_check_interval=min(run.validate_every, run.steps) * run.accumulate,
        check_val_every_n_epoch=None,
        log_every_n_steps=min(10, run.steps),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[*callbacks, checkpoints, RichProgressBar(leave=True)],
        logger=loggers,
        plugins=[_AtomicCheckpointIO()],
    )


def fit(trainer: pl.Trainer, module: TrainingModule, data: TrainingData, checkpoint: str | None) -> None:
    """Train, starting from a checkpoint if one is given.

    Raises:
        PebalError: the checkpoint is damaged, was crafted, or belongs to another run.

    Examples:
        >>> run, folder = RunConfig(steps=5), Path("runs/mine")
        >>> fit(make_trainer(run, folder), module, data, find_checkpoint(run, folder))  # doctest: +SKIP
    """
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except PebalError:
        raise
    except SystemExit as end:  # Lightning's response to Ctrl-C
        raise KeyboardInterrupt from end
    except Exception as error:  # a damaged file can raise anything
        if checkpoint is None or module.begun:
            raise
        reason = next(iter(str(error).splitlines()), "")
        raise PebalError(
            f"Training cannot continue from {checkpoint} ({type(error).__name__}: {reason:.150}); start over without "
            "resume."
        ) from error


def find_checkpoint(run: RunConfig, folder: Path) -> str | None:
    """The checkpoint to continue from, or None for a fresh start.

    Raises:
        PebalError: there is nothing to resume.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, CHECKPOINT).touch()
        ...     Path(find_checkpoint(RunConfig(resume=True), Path(folder))).name
        'last.ckpt'
        >>> find_checkpoint(RunConfig(), Path("runs/train")) is None
        True
    """
    if not run.resume:
        return None
    path = folder / CHECKPOINT
    if not path.is_file():
        raise PebalError(f"There is nothing to resume, because {path} does not exist. Start without resume.")
    return str(path)
