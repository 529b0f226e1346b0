"""The Lightning module of fine-tuning: it trains the head of a network with PEBAL's objective.

The trunk runs without autograd unless some of it is trained. Its BatchNorm statistics are frozen by default.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from ..data.partial_labels import resolve_groups
from ..errors import PebalError
from ..labels import ANYTHING, LABELLED_OUTLIER, OUTLIER, VOID
from ..losses import pebal_loss
from ..model_file import save_model
from ..model_info import ModelInfo
from ..networks import AnomalyBranch, KeptClasses, SegmentationNetwork, upsample
from ..scores import free_energy
from .branch import set_statistics
from .emphasis import PixelWeights
from .evaluation import Evaluation
from .finetune_config import FinetuneConfig
from .run import TrainingModule
from .samples import FinetuneData
from .stream import NamedScene, Sample

STATISTICS_SAMPLES = 32
"""Number of samples from which a fresh branch takes its statistics."""
HISTOGRAM_EVERY = 100
"""Number of steps between energy histograms."""


def _choose_trainable(network: SegmentationNetwork, patterns: list[str]) -> None:
    """Switch gradients on for the parameters that match a pattern, or for the head without patterns, and off elsewhere.

    Raises:
        PebalError: a pattern matches nothing.
    """
    names = [name for name, _ in network.named_parameters()]
    if unused := [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]:
        raise PebalError(f"trainable: no parameter matches '{unused[0]}'; the first are {', '.join(names[:3])}.")
    for name, parameter in network.named_parameters():
        matched = any(fnmatchcase(name, p) for p in patterns) if patterns else network.is_head(name)
        parameter.requires_grad_(matched)


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum values differentiably, so that every process minimises the loss of the joined batch.

    Examples:
        >>> torch.distributed.init_process_group("gloo")  # in each of 8 processes  # doctest: +SKIP
        >>> sum_over_processes(torch.ones(2))  # doctest: +SKIP
        tensor([8., 8.])
    """
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(values)  # type: ignore[no-untyped-call]


@dataclass
class _Published:
    """The network that is evaluated and kept. This is not a module, so Lightning neither trains nor stores it."""

    network: SegmentationNetwork


class FinetuneModule(TrainingModule):
    """Trains one network with PEBAL's objective on the samples of a `FinetuneData`."""

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
        """Accuracy of the starting model."""
        self.forgot = ""
        """The reason why training ended early, in one sentence; empty: it did not."""
        _choose_trainable(network, config.trainable)
        trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        self.trunk_learns = not all(map(network.is_head, trained))
        answering = network
        if config.keep_classes:
            own_trunk = self.trunk_learns or not config.freeze_bn
            answering = KeptClasses(network, copy.deepcopy(network).requires_grad_(False), own_trunk)
            info.network_args = {"network": info.network, "own_trunk": own_trunk, **info.network_args}
            info.network = "kept_classes"
        self.published = _Published(answering)
        self.evaluation: Evaluation | None = None
        """Metrics of the validation epoch in progress. It is None otherwise, because averaging copies the module and
        the metrics' files cannot be copied."""

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
        """Four normalised training samples, the same in every process."""
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
        """Resolve label groups to classes. Beside a branch, which cannot change class probabilities, known pixels take
        the class that the frozen network predicts."""
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
            """(1 - step / total)^power, bounded so that the rate of the head does not fall below `min_lr`."""
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
        evaluation.add(*self.answer(image), labels, name)
        if far is not None:
            image, labels, name = far
            evaluation.add_far(self.answer(image)[0], labels, name)

    def answer(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energy in nats and labels, H×W each, from the network that is kept."""
        logits = upsample(self.published.network(self.image_tensor(image)).float(), image.shape[:2])
        return free_energy(logits)[0].cpu().numpy(), logits[0, :-1].max(0).indices.cpu().numpy()

    def on_validation_epoch_end(self) -> None:
        evaluation, self.evaluation = self.evaluation, None
        assert evaluation is not None
        joint = evaluation.joined(self.joint)
        figures, detail = joint.figures(self.data.validation.name), joint.detail(self.config.target_fpr)
        self.log_dict(figures, prog_bar=True, rank_zero_only=True)
        self.log_dict(detail, rank_zero_only=True)
        if self.trainer.state.fn != TrainerFn.FITTING:
            self.first_accuracy = figures["val_accuracy"]
            return
        least = self.config.keep_accuracy * self.first_accuracy
        if figures["val_accuracy"] < least:
            self.forgot = (
                f"After {self.trainer.global_step} steps {figures['val_accuracy']:.3f} of the labelled validation "
                f"pixels are labelled correctly, which is less than {least:.3f}."
            )
            self.trainer.should_stop = True
            return
        figures["step"] = self.trainer.global_step
        self.info.training["validation"] = {"set": self.data.validation.name, **figures, **detail}
        if figures["val_ap"] > self.best.get("val_ap", -1.0):
            self.best = figures
            self.save("best")
        if self.config.keep_accuracy:
            self.save("last")

    def save(self, name: str) -> None:
        """Write the network that is kept to the output folder."""
        if self.trainer.is_global_zero:
            save_model(Path(self.config.out) / f"{name}.safetensors", self.published.network, self.info)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["best"], checkpoint["first_accuracy"] = self.best, self.first_accuracy

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.best, self.first_accuracy = checkpoint["best"], checkpoint.get("first_accuracy", 0.0)
