"""Trains a segmentation network from labelled images (``pebal pretrain``).

    pebal pretrain --config config/pretrain_camvid.yaml --data DIR --out model.safetensors

The K classes are trained by cross-entropy and the Dice loss over K+1 channels, so the abstention channel learns to stay
low and is ready for PEBAL fine-tuning. To use several GPUs, start one process per GPU with
``torchrun --nproc-per-node N -m pebal_core pretrain …``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor

from ..class_list import load_class_list
from ..data.augment import random_camera, random_color, random_crop, random_mirror, random_scale
from ..data.scenes import SceneSet, UnlabelledScenes, check_scenes, open_scenes
from ..detector import AnomalyDetector
from ..errors import PebalError
from ..guarantee import Request
from ..labels import OUTLIER, VOID
from ..metrics.segmentation import SegmentationMetrics
from ..model_file import save_model
from ..model_info import ModelInfo
from ..networks import SegmentationNetwork, build_network
from ..ranges import RATE, SHARE, SIDE, WEIGHT, check_ranges
from .calibrate import CalibrationScene, calibrate
from .encoders import load_encoder
from .run import AveragedWeights, RunConfig, TrainingData, TrainingModule, find_checkpoint, fit, make_trainer
from .stream import NamedScene, Sample, shuffled_index

FALSE_ALARMS = 0.01
"""Expected share of falsely alarmed pixels at the threshold that is stored with the model."""


@dataclass(kw_only=True)
class PretrainConfig(RunConfig):
    """Everything that defines one training run.

    Examples:
        >>> PretrainConfig(data="data/camvid", steps=200, network={"architecture": "segformer", "encoder": "mit_b0"}).lr
        0.0015
    """

    data: str
    """Folder of the labelled images, with the splits train and val."""
    layout: str = "camvid"
    """Layout of the folder, which is one of ``pebal train``, such as cityscapes, or folders for any images with
    labels."""
    classes: str | None = None
    """Name or YAML file of the class list of the label files, for the layout folders."""
    out: str = "runs/pretrain/model.safetensors"
    """The model file to write; logs and checkpoints are written beside it."""
    network: str | dict[str, Any] = "deeplabv3plus"
    """Name of a network, or the architecture and the encoder of segmentation-models-pytorch with their options, such as
    ``{architecture: segformer, encoder: mit_b0}``."""
    network_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the network that is given by name."""
    encoder_weights: str | None = "efficientnet_lite0"
    """ImageNet weights for the encoder, which are efficientnet_lite0 (from the package of that name) or none."""
    crop: list[int] = field(default_factory=lambda: [320, 320])
    """Height and width of a training crop in pixels."""
    scale: list[float] = field(default_factory=lambda: [0.6, 2.0])
    """Bounds of the random scale."""
    color: float = 0.3
    """Strength of the random brightness, contrast, saturation and white balance."""
    camera: float = 0.0
    """Probability of each of gamma, blur, noise and JPEG artefacts."""
    encoder_lr: float = 3e-4
    """Peak learning rate (AdamW) of the encoder."""
    lr: float = 1.5e-3
    """Peak learning rate (AdamW) of the other parameters; both are warmed up and then decay along a cosine."""
    weight_decay: float = 1e-2
    class_balance: float = 0.5
    """Exponent of the inverse class frequency that weights the loss, from 0 (no weights) to 1 (full weights)."""
    dice: float = 0.0
    """Weight of the Dice loss, in which thin and rare classes count as much as frequent ones."""
    ema_decay: float = 0.995
    """Decay per step of the averaged weights, which are the ones that are saved."""
    clip: float = 5.0
    """Largest norm of the gradient."""
    half: bool = True
    """Store the convolution kernels as float16, which halves the file."""
    licence: str = ""
    """Licence of the resulting weights, which follows from the data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            self,
            {"crop": 2, "scale": 2},
            crop=SIDE,
            scale=(0.01, 100),
            color=SHARE,
            camera=SHARE,
            encoder_lr=RATE,
            lr=RATE,
            weight_decay=RATE,
            class_balance=SHARE,
            dice=WEIGHT,
            ema_decay=SHARE,
        )


def pretrain(config: PretrainConfig) -> Path:
    """Train, evaluate, calibrate and save a network; returns the path of the model file.

    Raises:
        PebalError: the data or an option cannot be used; it is raised before training starts.

    Examples:
        >>> config = PretrainConfig(data="data/camvid", out="runs/camvid/model.safetensors", steps=200)
        >>> pretrain(config)  # doctest: +SKIP
        PosixPath('runs/camvid/model.safetensors')
    """
    pl.seed_everything(config.seed, workers=True, verbose=False)
    train, validation = (_open_split(config, split) for split in ("train", "val"))
    out = Path(config.out)
    name, arguments = _network_of(config)
    info = ModelInfo(network=name, network_args=arguments, licence=config.licence)
    info.use_classes(train.classes)
    network = build_network(name, num_outputs=info.num_outputs, **arguments)
    if config.encoder_weights is not None:
        load_encoder(network, config.encoder_weights)
    data = PretrainData(config, train, validation)
    module = _PretrainModule(network, info, config, class_weights(train, network.num_outputs, config.class_balance))
    trainer = make_trainer(config, out.parent, [AveragedWeights(decay=config.ema_decay)])
    fit(trainer, module, data, find_checkpoint(config, out.parent))
    info.training = {
        "command": "pebal pretrain",
        "config": {key: value for key, value in asdict(config).items() if key not in ("data", "out")},
        "data": f"{train.name} ({len(train)} images)",
    }
    if trainer.is_global_zero:
        save_model(out, network, info, config.half)
        detector = AnomalyDetector.load(out)
        scenes = (CalibrationScene(str(n), *validation.load(n)) for n in range(len(validation)))
        calibrate(detector, scenes, Request(FALSE_ALARMS), "scenes", validation.name, relax=True)
        save_model(out, network, detector.info, config.half)
    return out


def _network_of(config: PretrainConfig) -> tuple[str, dict[str, Any]]:
    """Name and arguments for `build_network`.

    Raises:
        PebalError: the network is given as an architecture, but there are `network_args` as well.
    """
    if isinstance(config.network, str):
        return config.network, config.network_args
    if config.network_args:
        raise PebalError("The options of an architecture belong next to its name in network; leave network_args out.")
    return "smp", config.network


def _open_split(config: PretrainConfig, split: str) -> SceneSet:
    """Open and check the images of a split; labelled anomalies become void.

    Raises:
        PebalError: the split cannot be used, or labels some pixels with several classes.
    """
    scenes = open_scenes(
        config.layout, config.data, split, None if config.classes is None else load_class_list(config.classes)
    )
    check_scenes(scenes)
    table = np.where(scenes.id_table == OUTLIER, VOID, scenes.id_table)
    if isinstance(scenes, UnlabelledScenes) or ((table >= len(scenes.classes.names)) & (table != VOID)).any():
        raise PebalError(f"{scenes.name} does not label each pixel with one class; choose another layout.")
    return replace(scenes, id_table=table)


def class_weights(scenes: SceneSet, num_outputs: int, exponent: float) -> Tensor:
    """Loss weight per output, which is the inverse pixel frequency to a power.

    The mean over the pixels is 1, and a class that does not occur has weight 1.

    Examples:
        >>> import tempfile
        >>> from pebal_core.files import write_atomically
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "0.pgm")
        ...     write_atomically(path, b"P5 4 1 255 " + bytes([0, 0, 0, 1]))  # 3 pixels of class 0, and 1 of class 1
        ...     scenes = SceneSet("one scene", ((path, path),), np.arange(256, dtype=np.uint8))
        ...     class_weights(scenes, num_outputs=3, exponent=1.0)
        tensor([0.6667, 2.0000, 1.0000])
    """
    counts = np.zeros(256, np.int64)
    for index in range(len(scenes)):
        counts += np.bincount(scenes.load(index)[1].ravel(), minlength=256)
    present = counts[:num_outputs] > 0
    share = counts[:num_outputs][present] / counts[:num_outputs].sum()
    weights = np.ones(num_outputs)
    weights[present] = share**-exponent / np.sum(share ** (1 - exponent))
    return torch.tensor(weights, dtype=torch.float32)


class PretrainData(TrainingData):
    """Random crops of one scene set for training, and whole scenes of another for evaluation.

    Args:
        config: the settings.
        train, validation: scene sets with the classes of the network.
    """

    def __init__(self, config: PretrainConfig, train: SceneSet, validation: SceneSet) -> None:
        super().__init__(config)
        self.config, self.train, self.validation = config, train, validation

    def draw(self, rng: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw one crop, augmented in scale, mirroring, position and colour."""
        config = self.config
        scene = self.train.load(shuffled_index(config.seed, number, len(self.train)))
        image, labels = random_scale(*scene, config.scale[0], config.scale[1], rng)
        image, labels = random_mirror(image, labels, 0.5, rng)
        image, labels = random_crop(image, labels, config.crop[0], config.crop[1], rng)
        return random_camera(random_color(image, config.color, rng), config.camera, rng), labels

    @property
    def evaluated(self) -> int:
        return len(self.validation)

    def load_evaluated(self, number: int) -> NamedScene:
        return (*self.validation.load(number), str(self.validation.pairs[number][0]))


class _PretrainModule(TrainingModule):
    """Cross-entropy training of a network on crops of a scene set.

    Args:
        network: the network.
        info: its description.
        config: the settings.
        weights: weight of each output in the loss.
    """

    class_weights: Tensor

    def __init__(
        self,
        network: SegmentationNetwork,
        info: ModelInfo,
        config: PretrainConfig,
        weights: Tensor,
    ) -> None:
        super().__init__(network, config, info)
        self.config = config
        self.register_buffer("class_weights", weights, persistent=False)
        self.metrics = SegmentationMetrics(info.class_names)
        """Metrics of the current or last validation epoch."""
        self.dice = DiceLoss("multiclass", ignore_index=VOID)

    def training_step(self, batch: Sample, batch_index: int) -> Tensor:
        images, target = batch
        logits = self.network(self.normalise(images)).float()
        loss = F.cross_entropy(logits, target, weight=self.class_weights, ignore_index=VOID)
        if self.config.dice:
            loss = loss + self.config.dice * self.dice(logits, target)
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.metrics = SegmentationMetrics(self.info.class_names)

    def validation_step(self, scene: NamedScene, batch_index: int) -> None:
        image, labels, name = scene
        predicted = self.network(self.image_tensor(image))[:, :-1].max(dim=1).indices
        self.metrics.update(predicted[0].cpu().numpy(), labels, name=name)

    def on_validation_epoch_end(self) -> None:
        miou = self.joint(self.metrics).labelled_miou()
        self.log("val_miou", float("nan") if miou is None else miou, prog_bar=True, rank_zero_only=True)

    def configure_optimizers(self) -> Any:
        groups = {True: [], False: []}  # type: dict[bool, list[Tensor]]
        for name, parameter in self.network.named_parameters():
            groups[name.startswith("encoder.")].append(parameter)
        rates = [self.config.encoder_lr, self.config.lr]
        optimizer = torch.optim.AdamW(
            [{"params": groups[True], "lr": rates[0]}, {"params": groups[False], "lr": rates[1]}],
            weight_decay=self.config.weight_decay,
        )
        steps = self.config.steps
        rise = max(0.05, 1.5 / max(steps, 2))  # OneCycleLR divides by rise * steps - 1
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=rates, total_steps=steps, pct_start=rise, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
