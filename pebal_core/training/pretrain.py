"""Supervised training of a segmentation network from labelled images: ``pebal pretrain``.

    pebal pretrain --config config/pretrain_camvid.yaml --data DIR --out model.safetensors

The K classes are trained by cross-entropy over K+1 channels, so the abstention channel learns to stay silent and is
ready for PEBAL fine-tuning. One process per GPU with ``torchrun --nproc-per-node N -m pebal_core pretrain …``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor

from ..data.augment import random_color, random_crop, random_mirror, random_scale
from ..data.scenes import SceneSet, camvid
from ..detector import AnomalyDetector
from ..errors import PebalError
from ..labels import VOID
from ..metrics.segmentation import ConfusionMatrix
from ..model_file import ModelInfo, save_model
from ..networks import SegmentationNetwork, build_network
from .calibrate import calibrate
from .encoders import load_encoder
from .stream import Sample, SampleStream, shuffled_index, stream_loader


FALSE_ALARMS = 0.01
"""Share of the validation set's inlier pixels above the threshold that is stored with the model."""


@dataclass
class PretrainConfig:
    """Everything that defines one training run."""

    data: str
    """CamVid in SegNet's layout: the folder that holds train/, trainannot/, val/, valannot/, …"""
    out: str = "runs/pretrain/model.safetensors"
    """The trained model; logs and checkpoints are written beside it."""
    network: str = "deeplabv3plus"
    network_args: dict[str, Any] = field(default_factory=dict)
    encoder_weights: str | None = "efficientnet_lite0"
    """ImageNet weights for the encoder: efficientnet_lite0 (from the package of that name), or none."""
    steps: int = 1000
    batch_size: int = 8
    """Per process."""
    crop: list[int] = field(default_factory=lambda: [320, 320])
    """Height and width of a training crop."""
    scale: list[float] = field(default_factory=lambda: [0.6, 2.0])
    """Bounds of the random scale."""
    color: float = 0.3
    """Strength of the random brightness, contrast, saturation and white balance."""
    encoder_rate: float = 3e-4
    rate: float = 1.5e-3
    """Peak learning rates (AdamW) of the encoder and of the rest; warm-up, then polynomial decay."""
    weight_decay: float = 1e-2
    class_balance: float = 0.5
    """Exponent of the inverse class frequency that weights the loss: 0 = none, 1 = full."""
    ema_decay: float = 0.995
    """Decay per step of the averaged weights, which are the ones kept."""
    validate_every: int = 250
    """Steps between evaluations on the validation split."""
    workers: int = 1
    seed: int = 1
    accelerator: str = "auto"
    devices: int | str = "auto"
    precision: str = "32-true"
    """Lightning's name; bf16-mixed halves the time on CPUs with AVX-512 BF16 or AMX, and is slow on others."""
    resume: bool = False
    """Continue from the last checkpoint of the same run."""
    half: bool = True
    """Store the convolution kernels as float16, which halves the file."""
    licence: str = ""
    """Licence of the resulting weights: it follows from the data."""


def pretrain(config: PretrainConfig) -> Path:
    """Train, evaluate and save; returns the path of the model file.

    Raises:
        PebalError: data or options that cannot be used, before training starts.
    """
    pl.seed_everything(config.seed, workers=True, verbose=False)
    train, validation = camvid(config.data, "train"), camvid(config.data, "val")
    train.load(0)
    out = Path(config.out)
    info = ModelInfo(network=config.network, network_args=config.network_args, licence=config.licence)
    network = build_network(config.network, num_outputs=info.num_outputs, **config.network_args)
    if config.encoder_weights is not None:
        load_encoder(network, config.encoder_weights)
    module = PretrainModule(network, config, train, validation)
    checkpoints = ModelCheckpoint(out.parent, "last", save_top_k=1, every_n_train_steps=100, enable_version_counter=False)
    trainer = pl.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        precision=config.precision,  # type: ignore[arg-type]
        max_steps=config.steps,
        val_check_interval=config.validate_every,
        check_val_every_n_epoch=None,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        gradient_clip_val=5.0,
        callbacks=[EMAWeightAveraging(decay=config.ema_decay), checkpoints, RichProgressBar(leave=True)],
        logger=[CSVLogger(out.parent, "log", ""), TensorBoardLogger(out.parent, "log", "")],
    )
    last = out.parent / "last.ckpt"
    if config.resume and not last.is_file():
        raise PebalError(f"There is nothing to resume: {last} does not exist; start without --resume.")
    trainer.fit(module, ckpt_path=str(last) if config.resume else None, weights_only=True)
    info.training = {
        "command": "pebal pretrain",
        "config": {key: value for key, value in asdict(config).items() if key not in ("data", "out")},
        "data": f"{train.name} ({len(train)} images)",
    }
    if trainer.is_global_zero:
        save_model(out, network, info, config.half)
        detector = AnomalyDetector.load(out)
        calibrate(detector, map(validation.load, range(len(validation))), FALSE_ALARMS, validation.name)
        save_model(out, network, detector.info, config.half)
    return out


def class_weights(scenes: SceneSet, num_outputs: int, exponent: float) -> Tensor:
    """Loss weight per output: inverse pixel frequency to a power, mean 1 over the pixels; 1 where a class is absent."""
    counts = np.zeros(256, np.int64)
    for index in range(len(scenes)):
        counts += np.bincount(scenes.load(index)[1].ravel(), minlength=256)
    present = counts[:num_outputs] > 0
    share = counts[:num_outputs][present] / counts[:num_outputs].sum()
    weights = np.ones(num_outputs)
    weights[present] = share**-exponent / np.sum(share ** (1 - exponent))
    return torch.tensor(weights, dtype=torch.float32)


class PretrainModule(pl.LightningModule):
    """Cross-entropy training of one network on crops of one scene set."""

    def __init__(
        self, network: SegmentationNetwork, config: PretrainConfig, train: SceneSet, validation: SceneSet
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.config, self.train_set, self.validation_set = config, train, validation
        info = ModelInfo(network="")
        self.register_buffer("mean", 255 * torch.tensor(info.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(info.std).view(1, 3, 1, 1), persistent=False)
        weights = class_weights(train, network.num_outputs, config.class_balance)
        self.register_buffer("class_weights", weights, persistent=False)

    def draw(self, rng: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
        """One augmented crop: scale, mirror, crop, colour."""
        config = self.config
        scene = self.train_set.load(shuffled_index(config.seed, number, len(self.train_set)))
        image, labels = random_scale(*scene, config.scale[0], config.scale[1], rng)
        image, labels = random_mirror(image, labels, 0.5, rng)
        image, labels = random_crop(image, labels, config.crop[0], config.crop[1], rng)
        return random_color(image, config.color, rng), labels

    def train_dataloader(self) -> Any:
        share = self.config.batch_size * self.trainer.world_size
        stream = SampleStream(
            self.draw,
            self.config.seed,
            start=self.trainer.global_step * share,
            stop=self.config.steps * share,
            batch_size=self.config.batch_size,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        return stream_loader(stream, self.config.workers)

    def training_step(self, batch: Sample, batch_index: int) -> Tensor:
        images, target = batch
        logits = self.network(self.normalise(images)).float()
        loss = F.cross_entropy(logits, target, weight=self.class_weights, ignore_index=VOID)
        self.log("loss", loss, prog_bar=True)
        return loss

    def val_dataloader(self) -> Any:
        """Evaluation reads whole images itself; Lightning is given one number per image of this rank."""
        return range(self.trainer.global_rank, len(self.validation_set), self.trainer.world_size)

    def normalise(self, images: Tensor) -> Tensor:
        """B×3×H×W uint8 → what the network takes."""
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def on_validation_epoch_start(self) -> None:
        self.confusion = ConfusionMatrix(self.network.num_outputs - 1)

    def validation_step(self, index: int, batch_index: int) -> None:
        image, labels = self.validation_set.load(int(index))
        images = torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None]
        predicted = self.network(self.normalise(images))[:, :-1].argmax(dim=1)
        self.confusion.update(predicted[0].cpu().numpy(), labels)

    def on_validation_epoch_end(self) -> None:
        counts = torch.from_numpy(self.confusion.counts).to(self.device)
        self.confusion.counts = self.trainer.strategy.reduce(counts, reduce_op="sum").cpu().numpy()  # type: ignore[union-attr]
        self.log("val_miou", self.confusion.mean_iou(), prog_bar=True, rank_zero_only=True)

    def configure_optimizers(self) -> Any:
        groups = {True: [], False: []}  # type: dict[bool, list[Tensor]]
        for name, parameter in self.network.named_parameters():
            groups[name.startswith("encoder.")].append(parameter)
        rates = [self.config.encoder_rate, self.config.rate]
        optimizer = torch.optim.AdamW(
            [{"params": groups[True], "lr": rates[0]}, {"params": groups[False], "lr": rates[1]}],
            weight_decay=self.config.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=rates, total_steps=self.config.steps, pct_start=0.05, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
