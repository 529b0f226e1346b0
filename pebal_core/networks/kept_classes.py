"""Combines the energies of a fine-tuned network with the classes of the network before fine-tuning."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..scores import free_energy
from .base import SegmentationNetwork


class KeptClasses(SegmentationNetwork):
    """Two networks that act as one.

    A shift of all K class logits of a pixel changes its energy but not its class probabilities. The output therefore
    consists of the class logits of the starting network, shifted such that their energy equals that of the fine-tuned
    network, and of the fine-tuned network's abstention. Labels equal those of the starting network exactly, and
    energies those of the fine-tuned network. The idea of keeping the segmentation and learning the anomalies beside it
    comes from Liu et al., Residual Pattern Learning (ICCV 2023).

    Args:
        energy: the fine-tuned network.
        classes: the starting network, of the same kind.
        own_trunk: whether fine-tuning changed the trunk, so that the classes need the starting network's own trunk;
            otherwise both heads share one trunk.

    Examples:
        >>> from pebal_core.networks import build_network
        >>> tuned, start = (build_network("espnetv2", num_outputs=6, scale=0.5).eval() for _ in range(2))
        >>> both = KeptClasses(tuned, start, own_trunk=True).eval()
        >>> images = torch.rand(1, 3, 32, 48)
        >>> torch.equal(both(images)[:, :-1].argmax(1), start(images)[:, :-1].argmax(1))
        True
    """

    head_prefixes = ("energy.", "classes.")

    def __init__(self, energy: SegmentationNetwork, classes: SegmentationNetwork, own_trunk: bool) -> None:
        super().__init__()
        self.energy, self.classes, self.own_trunk = energy, classes, own_trunk
        self.num_outputs, self.stride, self.logit_stride = energy.num_outputs, energy.stride, energy.logit_stride
        self.features = (*energy.features, *(classes.features if own_trunk else ()))
        if not own_trunk:
            for name, _ in list(classes.named_children()):
                if not classes.is_head(f"{name}."):
                    setattr(classes, name, nn.Identity())

    def trunk(self, images: Tensor) -> tuple[Tensor, ...]:
        """Features of the fine-tuned network, followed by those of the starting network if it has its own trunk."""
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
