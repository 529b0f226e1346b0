"""PEBAL fine-tuning of any network on scenes with pasted outliers: ``pebal train``.

    pebal prepare-coco COCO_FOLDER outliers/coco
    pebal train --config config/train_espnetv2.yaml --data.root DATA --data.outliers outliers/coco --model MODEL
    torchrun --nproc-per-node 8 -m pebal_core train --config config/train_paper_wr38.yaml …

The trunk runs without autograd and, unless the reference's behaviour is asked for, with frozen statistics; the head
learns. The output folder gets last.ckpt, log/, and the models best.safetensors and last.safetensors.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

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
from ..labels import ANYTHING, LABELLED_OUTLIER, OUTLIER, VOID
from ..losses import LossConfig, pebal_loss
from ..metrics.alarms import Alarms
from ..metrics.pooled import PooledMetrics
from ..metrics.segmentation import SegmentationMetrics
from ..model_file import ModelInfo, file_sha256, load_model, resolve_model, save_model
from ..networks import AnomalyBranch, KeptClasses, SegmentationNetwork, upsample
from ..ranges import COUNT, RATE, SHARE, SIDE, check_ranges
from ..scores import free_energy
from .branch import add_branch, set_statistics
from .calibrate import CalibrationScene, calibrate
from .emphasis import Emphasis, PixelWeights
from .run import AveragedWeights, RunConfig, TrainingModule, find_checkpoint, fit, make_trainer
from .samples import (
    DataConfig,
    FinetuneData,
    anomaly_digests,
)
from .stream import NamedScene, Sample

STATISTICS_SAMPLES = 32
"""Samples from which a fresh branch takes its statistics."""
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
    trainable: list[str] = field(default_factory=list)
    """Patterns (as of a shell) of the names of the parameters that learn; empty: the head."""
    freeze_bn: bool = True
    """Whether BatchNorm keeps its statistics and dropout is off; otherwise the whole network is in training mode, as in
    the reference."""
    lr: float = 1e-5
    """Learning rate of Adam; polynomial decay follows."""
    backbone_lr: float = 1e-5
    """Learning rate of the parameters outside the head that learn."""
    decay_power: float = 0.9
    decay_steps: int | None = None
    """Steps after which the learning rate has decayed to `min_lr`; None: all."""
    min_lr: float = 1e-8
    ema_decay: float = 0.0
    """Decay per step of the averaged weights, which are then the ones evaluated and kept; 0: no averaging."""
    keep_classes: bool = False
    """Whether the classes stay those of the starting network, whose head (and trunk, where that is trained) then runs
    beside the fine-tuned one: `KeptClasses`."""
    branch: bool = False
    """Whether an anomaly branch learns beside the frozen network (`AnomalyBranch`): the labels stay and no second
    network runs. `lr` is its learning rate."""
    branch_width: int = 48
    """Channels of the branch."""
    emphasis: Emphasis = field(default_factory=Emphasis)
    """Pixels that weigh more in the objective."""
    input_size: list[int] | None = None
    """[height, width] at which the exported model runs; None: as the model it started from."""
    smoothing: bool = True
    """Whether the exported model blurs its energy (7×7 Gaussian)."""
    target_fpr: float = 0.01
    """Expected share of falsely alarmed pixels at the threshold that is stored with the model."""
    keep_accuracy: float = 0.0
    """Share of the starting model's pixel accuracy on the validation set that must remain. An evaluation that finds
    less ends the run, and last.safetensors then holds the state of the evaluation before. 0: nothing ends it."""
    licence: str = ""
    """Licence of the resulting weights: it follows from the data."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {"input_size": 2},
            lr=(1e-12, RATE[1]),
            backbone_lr=RATE,
            decay_power=(0, 100),
            decay_steps=COUNT,
            min_lr=RATE,
            ema_decay=SHARE,
            input_size=SIDE,
            target_fpr=(1e-6, 0.5),
            branch_width=(1, 4096),
            keep_accuracy=SHARE,
        )


def finetune(config: FinetuneConfig) -> dict[str, float]:
    """Train, evaluate, export and calibrate.

    Returns:
        figures of the best model on the validation set as fractions: val_ap, val_fpr95, val_auroc, val_miou and
        val_accuracy.

    Raises:
        PebalError: data, model or options that cannot be used, before training starts; NaN, during it.
    """
    pl.seed_everything(config.trainer.seed, workers=True, verbose=False)
    out = Path(config.out)
    network, info = load_model(config.model)
    if isinstance(network, KeptClasses):
        raise PebalError(
            f"{config.model} was fine-tuned with keep_classes; start from the model that it was made from."
        )
    if config.branch:
        if config.keep_classes or config.trainable or not config.freeze_bn:
            raise PebalError(
                "branch: the network beside the branch stays frozen; leave keep_classes, trainable and freeze_bn out."
            )
        network = add_branch(network, info, config.branch_width)
    checkpoint = find_checkpoint(config.trainer, out)
    data = FinetuneData(config.data, config.trainer, info.classes)
    samples, validation = data.samples, data.validation
    weights = PixelWeights(config.emphasis, info.classes)
    if weights.calm:
        weights.check(samples.some_labels(), f"40 samples of {samples.name}")
    info = describe(info, config, samples.name)
    if learned := anomaly_digests(samples):
        info.training["anomaly_images"] = learned
    module = FinetuneModule(network, info, config)
    averaging = [AveragedWeights(decay=config.ema_decay)] if config.ema_decay else []
    trainer = make_trainer(config.trainer, out, averaging)
    if checkpoint is None:
        trainer.validate(module, datamodule=data, verbose=False)
        if config.keep_accuracy:
            for name in ("best", "last"):
                module.save(name)
    fit(trainer, module, data, checkpoint)
    if module.forgot:
        print(f"{module.forgot} Training ends; the last state before it is kept.")
    if trainer.is_global_zero and (module.forgot or trainer.global_step == config.trainer.steps):
        if not module.forgot:
            save_model(out / "last.safetensors", module.published.network, info)
        for name in ("best", "last"):
            path = out / f"{name}.safetensors"
            detector = AnomalyDetector.load(path)
            scenes = (CalibrationScene(str(n), *validation.clean(n)) for n in range(len(validation)))
            request = Request(config.target_fpr)
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


def choose_trainable(network: SegmentationNetwork, patterns: list[str]) -> None:
    """Leave gradients on for the parameters that match a pattern, or for the head without patterns.

    Raises:
        PebalError: a pattern matches nothing.
    """
    names = [name for name, _ in network.named_parameters()]
    if unused := [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]:
        raise PebalError(f"trainable: no parameter matches '{unused[0]}'; the first are {', '.join(names[:3])}.")
    for name, parameter in network.named_parameters():
        matched = any(fnmatchcase(name, p) for p in patterns) if patterns else network.is_head(name)
        parameter.requires_grad_(matched)


Metric = TypeVar("Metric", PooledMetrics, Alarms)


def sum_over_processes(values: Tensor) -> Tensor:
    """Differentiable; every process then minimises the loss of the joined batch."""
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(values)  # type: ignore[no-untyped-call]


@dataclass
class Published:
    """The network that is evaluated and kept. Lightning neither trains nor stores it, because this is no module."""

    network: SegmentationNetwork


@dataclass
class Evaluation:
    """Metrics of one validation epoch."""

    pooled: PooledMetrics
    labels: SegmentationMetrics
    alarms: Alarms
    far: Alarms
    far_pooled: PooledMetrics

    @classmethod
    def of(cls, names: Sequence[str]) -> Evaluation:
        """Empty metrics for these classes."""
        return cls(PooledMetrics(), SegmentationMetrics(names), Alarms(names), Alarms(names), PooledMetrics())


class FinetuneModule(TrainingModule):
    """PEBAL's objective on the head of one network, fed by a `FinetuneData`."""

    @property
    def data(self) -> FinetuneData:
        data = super().data
        assert isinstance(data, FinetuneData)
        return data

    def __init__(self, network: SegmentationNetwork, info: ModelInfo, config: FinetuneConfig) -> None:
        super().__init__(network, config.trainer, info)
        self.config = config
        self.weights = PixelWeights(config.emphasis, info.classes)
        self.best: dict[str, float] = {}
        self.first_accuracy = 0.0
        """Of the starting model."""
        self.forgot = ""
        """Why training ended early, in one sentence."""
        choose_trainable(network, config.trainable)
        trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        self.trunk_learns = not all(map(network.is_head, trained))
        answering = network
        if config.keep_classes:
            own_trunk = self.trunk_learns or not config.freeze_bn
            answering = KeptClasses(network, copy.deepcopy(network).requires_grad_(False), own_trunk)
            info.network_args = {"network": info.network, "own_trunk": own_trunk, **info.network_args}
            info.network = "kept_classes"
        self.published = Published(answering)
        self.evaluation: Evaluation | None = None
        """Of the validation epoch that runs. Its files cannot be copied, as averaging does with the module."""

    def train(self, mode: bool = True) -> FinetuneModule:
        super().train(mode)
        if self.config.freeze_bn:
            self.network.eval()
        return self

    def on_train_start(self) -> None:
        self.train()
        if isinstance(self.network, AnomalyBranch) and not self.trainer.global_step:
            set_statistics(self.network, (self.fixed_batch(first) for first in range(0, STATISTICS_SAMPLES, 4)))

    def fixed_batch(self, first: int) -> Tensor:
        """Four normalised samples of the training set, the same ones in every process."""
        numbers = range(first, first + 4)
        images = np.stack([self.data.draw(np.random.default_rng([self.run.seed, n]), n)[0] for n in numbers])
        return self.normalise(torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2))

    def training_step(self, batch: Sample, batch_index: int) -> Tensor:
        images, target = batch
        with nullcontext() if self.trunk_learns else torch.no_grad():
            features = self.network.trunk(self.normalise(images))
        logits = self.network.head(features)
        together = sum_over_processes if self.trainer.world_size > 1 else None
        weights = self.weights.of(target)
        target = torch.where(target == LABELLED_OUTLIER, OUTLIER, target)
        terms = pebal_loss(logits, self.resolve(target, logits), self.config.loss, together, weights)
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

    def resolve(self, target: Tensor, logits: Tensor) -> Tensor:
        """Labels of the known pixels: those of the scenes, and beside a branch, which cannot move a class probability,
        what the frozen network takes them for."""
        if isinstance(self.network, AnomalyBranch):
            target = torch.where((target == OUTLIER) | (target == VOID), target, ANYTHING)
        return resolve_groups(target, logits)

    def _stop_at_nan(self, logits: Tensor, batch_index: int) -> None:
        finite = torch.isfinite(logits.flatten(1)).all(1).tolist()
        numbers = self.data.batch_numbers(batch_index)
        suspects = [n for n, fine in zip(numbers, finite, strict=True) if not fine] or list(numbers)
        files = list(dict.fromkeys(file for number in suspects for file in self.data.samples.files(number)))
        raise PebalError(
            f"The loss of step {self.trainer.global_step} is not finite; the batch was made from {', '.join(files)}. "
            f"Check these files, lower lr, or raise the precision."
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
        rates = {True: config.lr, False: config.backbone_lr}
        optimizer = torch.optim.Adam([{"params": p, "lr": rates[head]} for head, p in groups.items() if p])
        total = config.decay_steps or config.trainer.steps

        def share(step: int) -> float:
            """(1 - step / total)^power, but no rate below its floor."""
            return max(max(0.0, 1 - step / total) ** config.decay_power, config.min_lr / config.lr)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_validation_epoch_start(self) -> None:
        self.published.network.to(self.device)
        self.evaluation = Evaluation.of(self.info.class_names)

    def validation_step(self, scenes: tuple[NamedScene, NamedScene | None], batch_index: int) -> None:
        evaluation = self.evaluation
        assert evaluation is not None
        (image, labels, name), far = scenes
        energy, predicted = self.answer(image)
        outlier, known = labels == OUTLIER, labels < len(self.info.class_names)
        evaluation.pooled.update(energy, np.where(outlier, 1, np.where(labels == VOID, VOID, 0)), name=name)
        evaluation.labels.update(predicted, np.where(known, labels, VOID), name=name)
        evaluation.alarms.update(energy, labels, outlier)
        if far is not None:
            image, labels, name = far
            energy, outlier = self.answer(image)[0], labels == OUTLIER
            evaluation.far_pooled.update(energy, np.where(outlier, 1, np.where(labels == VOID, VOID, 0)), name=name)
            evaluation.far.update(energy, labels, outlier)

    def answer(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energy in nats and labels, H×W each, of what is kept."""
        logits = upsample(self.published.network(self.image_tensor(image)).float(), image.shape[:2])
        return free_energy(logits)[0].cpu().numpy(), logits[0, :-1].max(0).indices.cpu().numpy()

    def joint(self, metrics: Metric) -> Metric:
        """A metric over all ranks."""
        states: list[Any] = [type(metrics).from_state(state) for state in self.gather_states(metrics)]
        for other in states[1:]:
            states[0].merge(other)
        return states[0]

    def on_validation_epoch_end(self) -> None:
        evaluation, self.evaluation = self.evaluation, None
        assert evaluation is not None
        result, labels = self.joint(evaluation.pooled).compute(), self.joint_labels(evaluation.labels)
        miou, accuracy = labels.labelled_miou(), labels.compute().accuracy
        alarms, far = self.joint(evaluation.alarms), self.joint(evaluation.far)
        far_result = self.joint(evaluation.far_pooled).compute()
        if result.undefined is not None:
            raise PebalError(f"The validation set {self.data.validation.name} cannot be evaluated: {result.undefined}.")
        assert result.ap is not None and result.fpr95 is not None and result.auroc is not None
        figures = {
            "val_ap": result.ap,
            "val_fpr95": result.fpr95,
            "val_auroc": result.auroc,
            "val_miou": float("nan") if miou is None else miou,
            "val_accuracy": float("nan") if accuracy is None else accuracy,
        }
        self.log_dict(figures, prog_bar=True, rank_zero_only=True)
        by_class = alarms.by_class(alarms.threshold(self.config.target_fpr))
        detail = {f"alarms/{name}": share for name, share in by_class.items()}
        if far_result.ap is not None and far_result.fpr95 is not None:
            recall = far.recall(far.threshold(self.config.target_fpr))
            detail |= {"far/ap": far_result.ap, "far/fpr95": far_result.fpr95}
            detail |= {f"far/recall_{size}": share for size, share in recall.items()}
        self.log_dict(detail, rank_zero_only=True)
        if self.trainer.state.fn != TrainerFn.FITTING:
            self.first_accuracy = figures["val_accuracy"]
            return
        least = self.config.keep_accuracy * self.first_accuracy
        if figures["val_accuracy"] < least:
            self.forgot = (
                f"After {self.trainer.global_step} steps {figures['val_accuracy']:.3f} of the labelled validation "
                f"pixels have a right label, less than {least:.3f}."
            )
            self.trainer.should_stop = True
            return
        figures["step"] = self.trainer.global_step
        self.info.training["validation"] = {"set": self.data.validation.name, **figures, **detail}
        if result.ap > self.best.get("val_ap", -1.0):
            self.best = figures
            self.save("best")
        if self.config.keep_accuracy:
            self.save("last")

    def save(self, name: str) -> None:
        """Write what answers now to the output folder."""
        if self.trainer.is_global_zero:
            save_model(Path(self.config.out) / f"{name}.safetensors", self.published.network, self.info)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["best"], checkpoint["first_accuracy"] = self.best, self.first_accuracy

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.best, self.first_accuracy = checkpoint["best"], checkpoint.get("first_accuracy", 0.0)
