"""What an anomaly branch needs before it learns: a place beside its network, and statistics."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..model_file import ModelInfo
from ..networks import AnomalyBranch, SegmentationNetwork


def add_branch(network: SegmentationNetwork, info: ModelInfo, width: int) -> AnomalyBranch:
    """The network with a fresh branch, or as it is where it has one; `info` then names both.

    Raises:
        PebalError: a network without features for a branch.
    """
    if isinstance(network, AnomalyBranch):
        return network
    branched = AnomalyBranch(network, width).eval()
    info.network_args = {"network": info.network, "width": width, **info.network_args}
    info.network = "anomaly_branch"
    return branched


@torch.no_grad()
def set_statistics(network: AnomalyBranch, batches: Iterable[Tensor]) -> None:
    """Let a fresh branch standardise what it sees: its BatchNorms take over the statistics of some batches and keep
    them. A branch that has statistics is left alone.

    Args:
        network: in eval mode, and afterwards again.
        batches: normalised images B×3×H×W.
    """
    norms = [module for module in network.branch.modules() if isinstance(module, nn.BatchNorm2d)]
    if any(norm.num_batches_tracked for norm in norms):
        return
    for norm in norms:
        norm.train().momentum = None  # the mean over all batches
    for batch in batches:
        network.head(network.trunk(batch))
    network.eval()
