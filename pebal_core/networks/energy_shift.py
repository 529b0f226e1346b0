"""A frozen network whose energies are lowered by linear functions of its features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .anomaly_branch import certainty_of
from .base import SegmentationNetwork, upsample


class EnergyShift(SegmentationNetwork):
    """A frozen network with linear functions of its features that lower the energy where it is known to be wrong.

    With f the logits of the frozen network, K the index of its abstention, φ its features in a pixel, and (w_m, b_m)
    the functions:

        δ = Σ_m max(0, w_m·φ + b_m),      f'_k = f_k + δ  for k < K,      f'_K = f_K,      hence  E' = E - δ

    Labels therefore equal those of the frozen network, and no energy rises. The features are the maps that the trunk
    computes anyway and the certainty of the head, which consists of its logits, their log-sum-exp and their entropy.
    All functions start at δ = 0. `pebal_core.training.shift` fits them.

    Args:
        network: the network; its weights are never changed.
        functions: number of linear functions; each adaptation adds one.

    Examples:
        >>> from pebal_core.networks import build_network
        >>> network = build_network("espnetv2", num_outputs=6, scale=0.5).eval()
        >>> shifted = EnergyShift(network).eval()
        >>> images = torch.rand(1, 3, 32, 48)
        >>> torch.allclose(shifted(images), network(images), atol=1e-5)  # until it is fitted
        True
    """

    head_prefixes = ("shift.",)

    def __init__(self, network: SegmentationNetwork, functions: int = 1) -> None:
        super().__init__()
        self.network, self.functions = network, functions
        self.num_outputs, self.stride, self.logit_stride = network.num_outputs, network.stride, network.logit_stride
        self.features = (*network.features, (network.num_outputs, network.logit_stride))
        self.used = [number for number, (channels, _) in enumerate(network.features) if channels]
        self.channels = [*(network.features[number][0] for number in self.used), network.num_outputs + 2]
        """Channels of each of the maps that `inputs` returns."""
        self.shift = nn.ModuleList(nn.Conv2d(count, functions, 1) for count in self.channels)
        for parameter in self.shift.parameters():
            nn.init.zeros_(parameter)

    def trunk(self, images: Tensor) -> tuple[Tensor, ...]:
        """Features of the frozen network, followed by its logits."""
        features = self.network.trunk(images)
        return (*features, self.network.head(features))

    def head(self, features: tuple[Tensor, ...]) -> Tensor:
        logits = features[-1]
        maps = zip(self.shift, self.inputs(features), strict=True)
        # A linear function and the upsampling commute, and few channels are upsampled faster than many.
        sums = torch.stack([upsample(function(x), logits.shape[-2:]) for function, x in maps]).sum(0)
        shift = sums.relu().sum(1, keepdim=True)
        return torch.cat([logits[:, :-1] + shift, logits[:, -1:]], dim=1)

    def inputs(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        """The maps that together form φ, B×channels×h×w each, from what `trunk` returned."""
        return [*(features[number] for number in self.used), certainty_of(features[-1])]

    def add_function(self) -> EnergyShift:
        """The same network with one more function, which does nothing until it is fitted."""
        larger = EnergyShift(self.network, self.functions + 1).eval()
        with torch.no_grad():
            for new, old in zip(larger.shift.parameters(), self.shift.parameters(), strict=True):
                new[:-1] = old
        return larger

    def set_last(self, weight: Tensor, bias: float) -> None:
        """Set the function that was added last.

        Args:
            weight: one value per channel of `inputs`, in their order.
            bias: b_m in nats.
        """
        with torch.no_grad():
            for function, part in zip(self.shift, torch.split(weight, self.channels), strict=True):
                assert isinstance(function, nn.Conv2d) and function.bias is not None
                function.weight[-1] = part.view(-1, 1, 1)
                function.bias[-1] = bias / len(self.shift)

    def fold_linear(self) -> None:
        self.network.fold_linear()
