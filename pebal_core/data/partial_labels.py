"""Group labels, which stand for several classes, so that coarsely labelled scenes can be used for training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..labels import ANYTHING, BESIDE_ROAD, CARS, FAR, GREEN, RIDERS, ROADSIDE, SIGNS, VEHICLES, WALLS

GROUPS: dict[int, tuple[int, ...]] = {
    BESIDE_ROAD: (1, 9),  # sidewalk, terrain
    VEHICLES: (13, 14, 15, 16, 17, 18),
    ROADSIDE: (3, 4, 5, 6, 7),  # wall, fence, pole, traffic light, traffic sign
    FAR: (2, 8),  # building, vegetation
    CARS: (13, 14, 15, 16),  # car, truck, bus, train
    RIDERS: (12, 17, 18),  # rider, motorcycle, bicycle
    SIGNS: (6, 7),  # traffic light, traffic sign
    GREEN: (8, 9),  # vegetation, terrain
    WALLS: (2, 3),  # building, wall
}
"""Cityscapes trainIds by group label. `ANYTHING`, the label of unlabelled scenes, stands for any class."""


def resolve_groups(target: Tensor, logits: Tensor) -> Tensor:
    """Replace each group label by the class of the group that the network rates most probable at that pixel.

    Args:
        target: B×H×W integers; not modified.
        logits: B×(K+1)×h×w; no gradient flows through them.

    Returns:
        B×H×W without group labels.

    Examples:
        >>> logits = torch.zeros(1, 20, 1, 2)
        >>> logits[0, 14] = 1  # truck
        >>> resolve_groups(torch.tensor([[[CARS, 0]]]), logits).tolist()
        [[[14, 0]]]
    """
    with torch.no_grad():
        every = {**GROUPS, ANYTHING: tuple(range(logits.shape[1] - 1))}
        for group, classes in every.items():
            here = target == group
            if here.any():
                best = logits[:, list(classes)].max(1).indices  # argmax takes ten times as long
                choice = torch.tensor(classes, device=logits.device)[best]
                finest = F.interpolate(choice[:, None].float(), target.shape[-2:], mode="nearest")[:, 0]
                target = torch.where(here, finest.to(target.dtype), target)
    return target
