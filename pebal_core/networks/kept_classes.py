"""The energies of a fine-tuned network with the classes of the one that it started from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..scores import free_energy
from .base import SegmentationNetwork


class KeptClasses(SegmentationNetwork):
    """Two networks that answer as one.

    A shift of all K class logits of a pixel moves its energy and leaves its class probabilities. So the answer is the
    class logits of the starting network, shifted until their energy is that of the fine-tuned one, beside whose
    abstention they stand: labels are exactly those of the starting network, energies those of the fine-tuned one.
    Keeping the segmentation and learning the anomaly beside it: Liu et al., Residual Pattern Learning (ICCV 2023).

    Args:
        energy: the fine-tuned network.
        classes: the starting network, of the same kind.
        own_trunk: whether fine-tuning changed the trunk, so that the classes need the starting network's own;
            otherwise one trunk serves both heads.
    """

    head_prefixes = ("energy.", "classes.")

    def __init__(self, energy: SegmentationNetwork, classes: SegmentationNetwork, own_trunk: bool) -> None:
        super().__init__()
        self.energy, self.classes, self.own_trunk = energy, classes, own_trunk
        self.num_outputs, self.stride = energy.num_outputs, energy.stride
        if not own_trunk:
            for name, _ in list(classes.named_children()):
                if not classes.is_head(f"{name}."):
                    setattr(classes, name, nn.Identity())

    def trunk(self, images: Tensor) -> tuple[Tensor, ...]:
        """Features of the fine-tuned network, followed by those of the starting one where it has a trunk."""
        features = self.energy.trunk(images)
        return (*features, *self.classes.trunk(images)) if self.own_trunk else features

    def head(self, features: tuple[Tensor, ...]) -> Tensor:
        of_classes = len(features) // 2 if self.own_trunk else 0
        energy = self.energy.head(features[: of_classes or None]).float()
        classes = self.classes.head(features[of_classes:]).float()
        shift = free_energy(classes) - free_energy(energy)
        return torch.cat([classes[:, :-1] + shift[:, None], energy[:, -1:]], dim=1)

    def fold_linear(self) -> None:
        self.energy.fold_linear()
        if self.own_trunk:
            self.classes.fold_linear()
