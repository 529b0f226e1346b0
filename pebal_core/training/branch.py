"""Prepares an anomaly branch for training, by adding it to a network and setting its statistics."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..model_info import ModelInfo
from ..networks import AnomalyBranch, SegmentationNetwork


def add_branch(network: SegmentationNetwork, info: ModelInfo, width: int) -> AnomalyBranch:
    """Add an untrained branch to a network, unless it has one already, and update its description accordingly.

    Args:
        network: the network.
        info: its description, which is changed in place.
        width: channels of the branch.

    Raises:
        PebalError: the network declares no features for a branch.

    Examples:
        >>> from pebal_core.networks import build_network
        >>> info = ModelInfo("espnetv2", {"scale": 0.5})
        >>> branched = add_branch(build_network("espnetv2", scale=0.5), info, width=8)
        >>> info.network, info.network_args, branched.head_prefixes
        ('anomaly_branch', {'network': 'espnetv2', 'width': 8, 'scale': 0.5}, ('branch.',))
    """
    if isinstance(network, AnomalyBranch):
        return network
    branched = AnomalyBranch(network, width).eval()
    info.network_args = {"network": info.network, "width": width, **info.network_args}
    info.network = "anomaly_branch"
    return branched


@torch.no_grad()
def set_statistics(network: AnomalyBranch, batches: Iterable[Tensor]) -> None:
    """Set the BatchNorm statistics of an untrained branch to those of some batches; a trained branch is not changed.

    Args:
        network: a network in eval mode, which it is in afterwards as well.
        batches: normalised images B×3×H×W.

    Examples:
        >>> from pebal_core.networks import build_network
        >>> network = build_network("anomaly_branch", network="espnetv2", width=8, scale=0.5).eval()
        >>> set_statistics(network, [torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)])
        >>> {int(m.num_batches_tracked) for m in network.branch.modules() if isinstance(m, nn.BatchNorm2d)}
        {2}
    """
    norms = [module for module in network.branch.modules() if isinstance(module, nn.BatchNorm2d)]
    if any(norm.num_batches_tracked for norm in norms):
        return
    for norm in norms:
        norm.train().momentum = None  # uses the mean over all batches
    for batch in batches:
        network.head(network.trunk(batch))
    network.eval()
