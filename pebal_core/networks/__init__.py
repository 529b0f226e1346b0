"""Segmentation networks by name: one way to build any of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import PebalError
from .anomaly_branch import AnomalyBranch
from .base import CountsOnCpu, SegmentationNetwork, upsample
from .espnetv2 import ESPNetv2
from .kept_classes import KeptClasses
from .smp import DeepLabV3Plus, SmpNetwork
from .transformers import TransformersNetwork
from .wide_resnet38 import DeepLabV3PlusWideResNet38


def kept_classes(num_outputs: int = 20, *, network: str, own_trunk: bool, **arguments: object) -> KeptClasses:
    """`KeptClasses` of two networks of this name and arguments."""
    energy, classes = (build_network(network, num_outputs, **arguments) for _ in range(2))
    return KeptClasses(energy, classes, own_trunk)


def anomaly_branch(num_outputs: int = 20, *, network: str, width: int = 48, **arguments: object) -> AnomalyBranch:
    """`AnomalyBranch` on a network of this name and arguments."""
    return AnomalyBranch(build_network(network, num_outputs, **arguments), width)


NETWORKS: dict[str, Callable[..., SegmentationNetwork]] = {
    "anomaly_branch": anomaly_branch,
    "deeplabv3plus": DeepLabV3Plus,
    "deeplabv3plus_wide_resnet38": DeepLabV3PlusWideResNet38,
    "espnetv2": ESPNetv2,
    "kept_classes": kept_classes,
    "smp": SmpNetwork,
    "transformers": TransformersNetwork,
}


def register_network(name: str, build: Callable[..., SegmentationNetwork]) -> None:
    """Make a network of one's own known by its name, in configurations and in model files.

    Args:
        build: takes ``num_outputs`` and the network's own arguments by name.
    """
    NETWORKS[name] = build


def build_network(name: str, num_outputs: int = 20, **arguments: object) -> SegmentationNetwork:
    """Build a network with fresh weights.

    Args:
        name: a key of `NETWORKS`.
        num_outputs: K inlier classes + 1 abstention channel.
        arguments: passed to the network's constructor.

    Raises:
        PebalError: unknown name or arguments.
    """
    if name not in NETWORKS:
        raise PebalError(f"Unknown network '{name}'; choose one of: {', '.join(sorted(NETWORKS))}.")
    try:
        return NETWORKS[name](num_outputs=num_outputs, **arguments)
    except PebalError:
        raise
    except Exception as error:  # the arguments may come from a file, and libraries fail at them in many ways
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise PebalError(f"Network '{name}' cannot be built with {arguments!s:.200}: {reason:.200}") from error


def describe_network(name: str, num_outputs: int = 20, **arguments: object) -> dict[str, Tensor]:
    """State dict of a network on PyTorch's meta device: names, shapes and types without values, in no memory.

    Raises:
        PebalError: as `build_network`.
    """
    with torch.device("meta"), CountsOnCpu():
        return build_network(name, num_outputs, **arguments).state_dict()


__all__ = [
    "NETWORKS",
    "AnomalyBranch",
    "KeptClasses",
    "SegmentationNetwork",
    "build_network",
    "describe_network",
    "register_network",
    "upsample",
]
