"""PEBAL fine-tuning of any network on scenes with pasted outliers: ``pebal train``.

    pebal prepare-coco COCO_FOLDER outliers/coco
    pebal train --config config/train_espnetv2.yaml --data.root DATA --data.outliers outliers/coco --model MODEL
    torchrun --nproc-per-node 8 -m pebal_core train --config config/train_paper_wr38.yaml …

The trunk runs without autograd and, unless the reference's behaviour is asked for, with frozen statistics; the head
learns. The output folder gets last.ckpt, log/, and the models best.safetensors and last.safetensors.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from ..data.partial_labels import resolve_groups
from ..detector import AnomalyDetector
from ..errors import PebalError
from ..guarantee import Request
from ..labels import CITYSCAPES_CLASSES, OUTLIER, VOID
from ..losses import LossConfig, pebal_loss
from ..metrics.pooled import PooledMetrics
from ..metrics.segmentation import SegmentationMetrics
from ..model_file import ModelInfo, file_sha256, load_model, resolve_model, save_model
from ..networks import KeptClasses, SegmentationNetwork, upsample
from ..scores import free_energy
from .calibrate import CalibrationScene, calibrate
from .run import AveragedWeights, RunConfig, TrainingModule, find_checkpoint, make_trainer
from .samples import DataConfig, TrainingSamples, ValidationScenes, open_outliers
from .stream import Sample

HISTOGRAM_EVERY = 100
"""Steps between energy histograms."""


@dataclass
class FinetuneConfig:
    """Everything that defines one fine-tuning run."""

    model: str
    """Model file to start from (``pebal convert`` makes one of a third-party checkpoint)."""
    data: DataConfig
    out: str = "runs/train"
    """Folder for models, checkpoints and logs."""
    trainer: RunConfig = field(default_factory=RunConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    trained: list[str] = field(default_factory=list)
    """Patterns (as of a shell) of the names of the trained parameters; empty: the head."""
    statistics: Literal["frozen", "reference"] = "frozen"
    """frozen: BatchNorm keeps its statistics and dropout is off; reference: the whole network is in training mode."""
    rate: float = 1e-5
    """Learning rate of Adam; polynomial decay follows."""
    trunk_rate: float = 1e-5
    """Learning rate of trained parameters outside the head."""
    decay_power: float = 0.9
    decay_steps: int | None = None
    """Steps after which the rate has decayed to its floor; None: all."""
    rate_floor: float = 1e-8
    ema_decay: float = 0.0
    """Decay per step of the averaged weights, which are then the ones evaluated and kept; 0: no averaging."""
    keep_classes: bool = False
    """Whether the classes stay those of the starting network, whose head (and trunk, where that is trained) then runs
    beside the fine-tuned one: `KeptClasses`."""
    input_size: list[int] | None = None
    """[height, width] at which the exported model runs; None: as the model it started from."""
    smoothing: bool = True
    """Whether the exported model blurs its energy (7×7 Gaussian)."""
    false_alarms: float = 0.01
    """Expected share of falsely alarmed pixels at the threshold that is stored with the model."""
    licence: str = ""
    """Licence of the resulting weights: it follows from the data."""


def finetune(config: FinetuneConfig) -> dict[str, float]:
    """Train, evaluate, export and calibrate.

    Returns:
        figures of the best model on the validation set: val_ap, val_fpr95, val_auroc, val_miou as fractions.

    Raises:
        PebalError: data, model or options that cannot be used, before training starts; NaN, during it.
    """
    pl.seed_everything(config.trainer.seed, workers=True, verbose=False)
    out = Path(config.out)
    network, info = load_model(config.model)
    if tuple(info.class_names) != CITYSCAPES_CLASSES:
        raise PebalError(
            f"{config.model} has {len(info.class_names)} classes ({', '.join(info.class_names[:3])}, …), but the scene "
            f"sets are labelled with the {len(CITYSCAPES_CLASSES)} Cityscapes classes; start from a network of those."
        )
    if isinstance(network, KeptClasses):
        raise PebalError(
            f"{config.model} was fine-tuned with keep_classes; start from the model that it was made from."
        )
    checkpoint = find_checkpoint(config.trainer, out)
    outliers, held_back = open_outliers(config.data)
    samples = TrainingSamples(config.data, outliers, config.trainer.seed)
    validation = ValidationScenes(config.data, held_back)
    samples.draw(np.random.default_rng(0), 0)
    info = describe(info, config, samples.name)
    module = FinetuneModule(network, info, config, samples, validation)
    averaging = [AveragedWeights(decay=config.ema_decay)] if config.ema_decay else []
    trainer = make_trainer(config.trainer, out, averaging)
    if checkpoint is None:
        trainer.validate(module, verbose=False)
    trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
    if trainer.is_global_zero and trainer.global_step == config.trainer.steps:
        save_model(out / "last.safetensors", module.answering[0], info)
        for name in ("best", "last"):
            path = out / f"{name}.safetensors"
            detector = AnomalyDetector.load(path)
            scenes = (CalibrationScene(str(n), *validation.clean(n)) for n in range(len(validation)))
            request = Request(config.false_alarms)
            calibrate(detector, scenes, request, "scenes", f"{len(validation)} validation scenes", relax=True)
            save_model(path, load_model(path)[0], detector.info)
    return module.best


def describe(info: ModelInfo, config: FinetuneConfig, data: str) -> ModelInfo:
    """What the fine-tuned model will say of itself."""
    info = copy.deepcopy(info)
    options = asdict(config)
    # Paths say nothing to whoever gets the model.
    for section, key in (
        (options, "model"),
        (options, "out"),
        (options["data"], "root"),
        (options["data"], "outliers"),
    ):
        del section[key]
    info.training = {
        "command": "pebal train",
        "config": options,
        "data": data,
        "started_from": {"sha256": file_sha256(resolve_model(config.model)), "training": info.training},
    }
    info.input_size = config.input_size or info.input_size
    info.smoothing = config.smoothing
    info.licence = config.licence or info.licence
    return info


def choose_trained(network: SegmentationNetwork, patterns: list[str]) -> None:
    """Leave gradients on for the parameters that match a pattern, or for the head without patterns.

    Raises:
        PebalError: a pattern matches nothing.
    """
    names = [name for name, _ in network.named_parameters()]
    if unused := [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]:
        raise PebalError(f"trained: no parameter matches '{unused[0]}'; the first are {', '.join(names[:3])}.")
    for name, parameter in network.named_parameters():
        matched = any(fnmatchcase(name, p) for p in patterns) if patterns else network.is_head(name)
        parameter.requires_grad_(matched)


def sum_over_processes(values: Tensor) -> Tensor:
    """Differentiable; every process then minimises the loss of the joined batch."""
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(values)  # type: ignore[no-untyped-call]


class FinetuneModule(TrainingModule):
    """PEBAL's objective on the head of one network."""

    def __init__(
        self,
        network: SegmentationNetwork,
        info: ModelInfo,
        config: FinetuneConfig,
        samples: TrainingSamples,
        validation: ValidationScenes,
    ) -> None:
        super().__init__(network, config.trainer, info)
        self.config, self.samples, self.validation_set = config, samples, validation
        self.best: dict[str, float] = {}
        choose_trained(network, config.trained)
        trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        self.trunk_learns = not all(map(network.is_head, trained))
        answering = network
        if config.keep_classes:
            own_trunk = self.trunk_learns or config.statistics == "reference"
            answering = KeptClasses(network, copy.deepcopy(network).requires_grad_(False), own_trunk)
            info.network_args = {"network": info.network, "own_trunk": own_trunk, **info.network_args}
            info.network = "kept_classes"
        self.answering = (answering,)
        """What is evaluated and kept; in a tuple, so that it is no part of what learns, nor of its checkpoints."""

    def train(self, mode: bool = True) -> FinetuneModule:
        super().train(mode)
        if self.config.statistics == "frozen":
            self.network.eval()
        return self

    def on_train_start(self) -> None:
        self.train()

    def draw(self, rng: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
        return self.samples.draw(rng, number)

    def training_step(self, batch: Sample, batch_index: int) -> Tensor:
        images, target = batch
        with nullcontext() if self.trunk_learns else torch.no_grad():
            features = self.network.trunk(self.normalise(images))
        logits = self.network.head(features)
        together = sum_over_processes if self.trainer.world_size > 1 else None
        terms = pebal_loss(logits, resolve_groups(target, logits), self.config.loss, together)
        total = terms.total
        if not torch.isfinite(total):
            self._stop_at_nan(logits, batch_index)
        self.log("classification", terms.classification, prog_bar=True)
        self.log("energy", terms.energy, prog_bar=True)
        self.log("E_in", terms.mean_inlier_energy, prog_bar=True)
        if not terms.mean_outlier_energy.isnan():
            self.log("E_out", terms.mean_outlier_energy, prog_bar=True)
        self.log("loss", total)
        if self.trainer.global_step % HISTOGRAM_EVERY == 0:
            self._log_histograms(logits.detach(), target)
        return total

    def _stop_at_nan(self, logits: Tensor, batch_index: int) -> None:
        finite = torch.isfinite(logits.flatten(1)).all(1).tolist()
        numbers = self.batch_numbers(batch_index)
        suspects = [n for n, fine in zip(numbers, finite, strict=True) if not fine] or list(numbers)
        files = list(dict.fromkeys(file for number in suspects for file in self.samples.files(number)))
        raise PebalError(
            f"The loss of step {self.trainer.global_step} is not finite; the batch was made from {', '.join(files)}. "
            f"Check these files, lower the rate, or raise the precision."
        )

    def _log_histograms(self, logits: Tensor, target: Tensor) -> None:
        energy = upsample(free_energy(logits.float())[:, None], target.shape[-2:])[:, 0]
        groups = {"inlier": (target != OUTLIER) & (target != VOID), "outlier": target == OUTLIER}
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                for name, here in groups.items():
                    if here.any():
                        logger.experiment.add_histogram(f"energy/{name}", energy[here], self.trainer.global_step)

    def configure_optimizers(self) -> Any:
        config = self.config
        groups: dict[bool, list[Tensor]] = {True: [], False: []}
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                groups[self.network.is_head(name)].append(parameter)
        rates = {True: config.rate, False: config.trunk_rate}
        optimizer = torch.optim.Adam([{"params": p, "lr": rates[head]} for head, p in groups.items() if p])
        total = config.decay_steps or config.trainer.steps

        def share(step: int) -> float:
            """(1 - step / total)^power, but no rate below its floor."""
            return max(max(0.0, 1 - step / total) ** config.decay_power, config.rate_floor / config.rate)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def val_dataloader(self) -> Any:
        return self.shard(len(self.validation_set))

    def on_validation_epoch_start(self) -> None:
        self.answering[0].to(self.device)
        self.pooled, self.labels = PooledMetrics(), SegmentationMetrics(self.info.class_names)

    def validation_step(self, number: int, batch_index: int) -> None:
        image, labels, name = self.validation_set.load(int(number))
        logits = upsample(self.answering[0](self.image_tensor(image)).float(), labels.shape)
        energy, predicted = free_energy(logits)[0], logits[0, :-1].max(0).indices
        outlier, known = labels == OUTLIER, labels < len(self.info.class_names)
        target = np.where(outlier, 1, np.where(labels == VOID, VOID, 0))
        self.pooled.update(energy.cpu().numpy(), target, name=name)
        self.labels.update(predicted.cpu().numpy(), np.where(known, labels, VOID), name=name)

    def on_validation_epoch_end(self) -> None:
        pooled = PooledMetrics()
        for state in self.gather_states(self.pooled):
            pooled.merge(PooledMetrics.from_state(state))
        result, miou = pooled.compute(), self.joint_miou(self.labels)
        # Their files cannot be copied, as averaging does with the module.
        del self.pooled, self.labels
        if result.undefined is not None:
            raise PebalError(f"The validation set {self.validation_set.name} cannot be evaluated: {result.undefined}.")
        assert result.ap is not None and result.fpr95 is not None and result.auroc is not None
        figures = {
            "val_ap": result.ap,
            "val_fpr95": result.fpr95,
            "val_auroc": result.auroc,
            "val_miou": miou,
        }
        self.log_dict(figures, prog_bar=True, rank_zero_only=True)
        if self.trainer.state.fn != TrainerFn.FITTING:
            return
        figures["step"] = self.trainer.global_step
        self.info.training["validation"] = {"set": self.validation_set.name, **figures}
        if result.ap > self.best.get("val_ap", -1.0):
            self.best = figures
            if self.trainer.is_global_zero:
                save_model(Path(self.config.out) / "best.safetensors", self.answering[0], self.info)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["best"] = self.best

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.best = checkpoint["best"]
