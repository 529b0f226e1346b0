"""A network of every kind with random weights, and a photograph to show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from pebal_core.networks import AnomalyBranch, EnergyShift, SegmentationNetwork, build_network

PHOTOGRAPH = Path(__file__).parents[2] / "docs/demo.jpg"

NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    # name, arguments, BatchNorms that no convolution directly precedes
    "resnet18": ("deeplabv3plus", {"encoder": "resnet18", "decoder_channels": 16}, 0),
    "efficientnet_lite0": ("deeplabv3plus", {"encoder": "tu-tf_efficientnet_lite0", "decoder_channels": 16}, 0),
    "wide_resnet38": ("deeplabv3plus_wide_resnet38", {}, 17),  # the first of each residual block
    "espnetv2": ("espnetv2", {"scale": 0.5}, 16),  # after 13 concatenations and 3 sums
    "two espnetv2": ("kept_classes", {"network": "espnetv2", "own_trunk": True, "scale": 0.5}, 32),
    "branch on espnetv2": ("anomaly_branch", {"network": "espnetv2", "width": 16, "scale": 0.5}, 16),
    "branch on resnet18": (
        "anomaly_branch",
        {"network": "deeplabv3plus", "encoder": "resnet18", "decoder_channels": 16},
        0,
    ),
    "two heads": (
        "kept_classes",
        {"network": "deeplabv3plus", "own_trunk": False, "encoder": "resnet18", "decoder_channels": 16},
        0,
    ),
    "shift on two heads": (
        "energy_shift",
        {
            "network": "kept_classes",
            "arguments": {
                "network": "deeplabv3plus",
                "own_trunk": False,
                "encoder": "resnet18",
                "decoder_channels": 16,
            },
            "functions": 2,
        },
        0,
    ),
}


def photograph(height: int, width: int, count: int = 1) -> np.ndarray:
    """Different parts of a real image, N×H×W×3 RGB."""
    image = cv2.imread(str(PHOTOGRAPH))
    assert image is not None
    image = image[..., ::-1]
    rows, columns = np.array(image.shape[:2]) - (height, width)
    assert min(rows, columns) >= 0
    starts = [(rows * i // max(count - 1, 1), columns * i // max(count - 1, 1)) for i in range(count)]
    return np.stack([image[y : y + height, x : x + width] for y, x in starts])


def network_of(name: str) -> SegmentationNetwork:
    """Random weights and, unlike those of a fresh network, random statistics."""
    torch.manual_seed(0)
    network_name, arguments, _ = NETWORKS[name]
    network = build_network(network_name, **arguments).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    if isinstance(network, EnergyShift):
        for parameter in network.shift.parameters():
            nn.init.normal_(parameter, 0, 0.1)
    if isinstance(network, AnomalyBranch):
        nn.init.normal_(network.branch.get_parameter("out.1.weight"))  # a fresh branch answers zero
    return network
