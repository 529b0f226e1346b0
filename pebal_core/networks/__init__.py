"""Builds segmentation networks by name."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import PebalError
from .anomaly_branch import AnomalyBranch
from .base import CountsOnCpu, SegmentationNetwork, upsample
from .energy_shift import EnergyShift
from .espnetv2 import ESPNetv2
from .kept_classes import KeptClasses
from .smp import DeepLabV3Plus, SmpNetwork
from .transformers import TransformersNetwork
from .wide_resnet38 import DeepLabV3PlusWideResNet38


def _kept_classes(num_outputs: int = 20, *, network: str, own_trunk: bool, **arguments: object) -> KeptClasses:
    """Build `KeptClasses` of two networks with this name and these arguments."""
    energy, classes = (build_network(network, num_outputs, **arguments) for _ in range(2))
    return KeptClasses(energy, classes, own_trunk)


def _anomaly_branch(num_outputs: int = 20, *, network: str, width: int = 48, **arguments: object) -> AnomalyBranch:
    """Build an `AnomalyBranch` on a network with this name and these arguments."""
    return AnomalyBranch(build_network(network, num_outputs, **arguments), width)


def _energy_shift(
    num_outputs: int = 20, *, network: str, arguments: dict[str, object], functions: int = 1
) -> EnergyShift:
    """Build an `EnergyShift` on a network with this name and these arguments."""
    return EnergyShift(build_network(network, num_outputs, **arguments), functions)


NETWORKS: dict[str, Callable[..., SegmentationNetwork]] = {
    "anomaly_branch": _anomaly_branch,
    "deeplabv3plus": DeepLabV3Plus,
    "deeplabv3plus_wide_resnet38": DeepLabV3PlusWideResNet38,
    "energy_shift": _energy_shift,
    "espnetv2": ESPNetv2,
    "kept_classes": _kept_classes,
    "smp": SmpNetwork,
    "transformers": TransformersNetwork,
}

_descriptions: dict[tuple[str, int, str], dict[str, Tensor]] = {}
"""Results of `describe_network`, because every loading and saving of a model asks for one and building takes long."""
MOST_DESCRIPTIONS = 64
"""Number of results that are kept."""


def register_network(name: str, build: Callable[..., SegmentationNetwork]) -> None:
    """Register your own network under a name, for configurations and model files.

    Args:
        name: name of the network.
        build: function that takes ``num_outputs`` and the network's own arguments by name, and returns the network.

    Examples:
        >>> def wide_espnetv2(num_outputs=20):
        ...     return ESPNetv2(num_outputs, scale=4.0)
        >>> register_network("wide_espnetv2", wide_espnetv2)
        >>> build_network("wide_espnetv2", num_outputs=6).num_outputs
        6
    """
    NETWORKS[name] = build
    _descriptions.clear()  # a network may contain another one that it names


def build_network(name: str, num_outputs: int = 20, **arguments: object) -> SegmentationNetwork:
    """Build a network with random weights.

    Args:
        name: a key of `NETWORKS`.
        num_outputs: K inlier classes + 1 abstention channel.
        arguments: arguments of the network's constructor.

    Raises:
        PebalError: the name or an argument is unknown.

    Examples:
        >>> network = build_network("espnetv2", num_outputs=6, scale=0.5).eval()
        >>> tuple(network(torch.zeros(1, 3, 32, 48)).shape)
        (1, 6, 32, 48)
    """
    if name not in NETWORKS:
        raise PebalError(f"Unknown network '{name}'; choose one of: {', '.join(sorted(NETWORKS))}.")
    try:
        return NETWORKS[name](num_outputs=num_outputs, **arguments)
    except PebalError:
        raise
    except Exception as error:  # the arguments may come from a file, and bad ones can raise any exception
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise PebalError(f"Network '{name}' cannot be built with {arguments!s:.200}: {reason:.200}") from error


def describe_network(name: str, num_outputs: int = 20, **arguments: object) -> dict[str, Tensor]:
    """State dict of a network on PyTorch's meta device, with names, shapes and types but without values or memory.

    Raises:
        PebalError: as for `build_network`.

    Examples:
        >>> describe_network("espnetv2", num_outputs=6)["bu_dec_l4.merge_layer.3.weight"].shape
        torch.Size([6, 3, 1, 1])
    """
    key = name, num_outputs, json.dumps(arguments, sort_keys=True, default=repr)
    described = _descriptions.get(key)
    if described is None:
        with torch.device("meta"), CountsOnCpu():
            described = dict(build_network(name, num_outputs, **arguments).state_dict())
        if len(_descriptions) >= MOST_DESCRIPTIONS:
            _descriptions.clear()
        _descriptions[key] = described
    return dict(described)


__all__ = [
    "NETWORKS",
    "AnomalyBranch",
    "EnergyShift",
    "KeptClasses",
    "SegmentationNetwork",
    "build_network",
    "describe_network",
    "register_network",
    "upsample",
]
