"""The options of ``pebal train``."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..losses import LossConfig
from ..ranges import COUNT, RATE, SHARE, SIDE, check_ranges
from .emphasis import Emphasis
from .run import RunConfig
from .samples import DataConfig


@dataclass
class FinetuneConfig:
    """All options of a fine-tuning run.

    Examples:
        >>> config = FinetuneConfig("starter", DataConfig([], [], "outliers/coco"), loss=LossConfig(penalty_floor=1.0))
        >>> config.trainer.steps, config.data.mix, config.freeze_bn
        (1000, 'rich_mix', True)
    """

    model: str
    """Model file to start from (``pebal convert`` makes one from a third-party checkpoint)."""
    data: DataConfig
    out: str = "runs/train"
    """Folder for models, checkpoints and logs."""
    trainer: RunConfig = field(default_factory=RunConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    trainable: list[str] = field(default_factory=list)
    """Shell patterns for the names of the parameters that are trained; empty: the head."""
    freeze_bn: bool = True
    """Whether BatchNorm keeps its statistics and dropout is off. Otherwise the whole network is in training mode, as in
    the reference."""
    lr: float = 1e-5
    """Learning rate of Adam; polynomial decay follows."""
    backbone_lr: float = 1e-5
    """Learning rate of trained parameters outside the head."""
    decay_power: float = 0.9
    decay_steps: int | None = None
    """Steps after which the learning rate has decayed to `min_lr`; None: all."""
    min_lr: float = 1e-8
    ema_decay: float = 0.0
    """Decay per step of the averaged weights, which are then evaluated and kept; 0: no averaging."""
    keep_classes: bool = False
    """Whether the starting network still predicts the classes. Its head, and its trunk where that is trained, then runs
    beside the fine-tuned one (`KeptClasses`)."""
    branch: bool = False
    """Whether an anomaly branch is trained beside the frozen network (`AnomalyBranch`). The labels stay the same, and
    no second network runs. `lr` is the learning rate of the branch."""
    branch_width: int = 48
    """Channels of the branch."""
    emphasis: Emphasis = field(default_factory=Emphasis)
    """Pixels that weigh more in the objective."""
    input_size: list[int] | None = None
    """[height, width] at which the resulting model runs, or [longer side], to which it scales down larger images; None:
    as in the starting model."""
    smoothing: bool = True
    """Whether the exported model blurs its energy (7×7 Gaussian)."""
    target_fpr: float = 0.01
    """Expected share of falsely alarmed pixels at the threshold that is stored with the model."""
    keep_accuracy: float = 0.0
    """Share of the starting model's pixel accuracy on the validation set that must remain. If an evaluation finds less,
    the run ends, and last.safetensors holds the state of the evaluation before; 0: the run never ends for this."""
    calm_samples: int = 0
    """Number of training samples to which one linear function of the features is fitted after the training; it lowers
    the energies of known pixels that alarm or nearly alarm (`EnergyShift`). 0: none."""
    licence: str = ""
    """Licence of the resulting weights, which depends on the data."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {"input_size": (1, 2)},
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
            calm_samples=(0, 10**6),
        )
