"""Which pixels weigh more in the objective: known things that must stay calm, and small outliers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from torch import Tensor

from ..data.partial_labels import GROUPS
from ..errors import PebalError
from ..labels import CITYSCAPES_CLASSES, OUTLIER
from ..ranges import SHARE, check_ranges


@dataclass(frozen=True)
class Emphasis:
    """Weights of pixels; the defaults weigh all the same."""

    calm: list[str] = field(default_factory=list)
    """Names of known classes that must not raise alarms, such as person and rider."""
    calm_weight: float = 10.0
    """Weight of a pixel of these classes; every other known pixel has 1."""
    size_exponent: float = 0.0
    """A pixel of an outlier of n pixels weighs (1000 / n)^size_exponent: 0 counts pixels, 1 counts objects."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.calm if name not in CITYSCAPES_CLASSES]:
            raise PebalError(
                f"emphasis.calm: there is no class '{unknown[0]}'; choose of {', '.join(CITYSCAPES_CLASSES)}."
            )
        check_ranges(self, calm_weight=(1e-6, 1e6), size_exponent=SHARE)

    @property
    def calm_labels(self) -> tuple[int, ...]:
        """TrainIds of the calm classes, and the group labels that stand for calm classes only."""
        calm = {CITYSCAPES_CLASSES.index(name) for name in self.calm}
        return (*sorted(calm), *(group for group, classes in GROUPS.items() if calm.issuperset(classes)))

    def weights(self, target: Tensor) -> Tensor | None:
        """B×H×W weights of a target B×H×W with group labels still in it; None where all weigh the same."""
        if not self.calm and not self.size_exponent:
            return None
        weights = torch.ones(target.shape, device=target.device)
        if self.calm:
            weights[torch.isin(target, torch.tensor(self.calm_labels, device=target.device))] = self.calm_weight
        if self.size_exponent:
            for weight, outlier in zip(weights, (target == OUTLIER).cpu().numpy(), strict=True):
                if outlier.any():
                    weight.copy_(torch.from_numpy(self._by_size(outlier)).to(weight).where(weight == 1, weight))
        return weights

    def _by_size(self, outlier: np.ndarray) -> np.ndarray:
        _, regions, stats, _ = cv2.connectedComponentsWithStats(outlier.astype(np.uint8), connectivity=8)
        by_region = (1000.0 / stats[:, cv2.CC_STAT_AREA]) ** self.size_exponent
        by_region[0] = 1.0
        return np.asarray(by_region[regions], np.float32)

    def check(self, labels: Sequence[np.ndarray], where: str) -> None:
        """Stop where a calm class is in none of these label maps.

        Raises:
            PebalError: nothing could teach the network to be calm there.
        """
        present: set[int] = set().union(*(np.unique(label).tolist() for label in labels))
        for name in self.calm:
            index = CITYSCAPES_CLASSES.index(name)
            labels_of = {index, *(g for g in self.calm_labels if g in GROUPS and index in GROUPS[g])}
            if not labels_of & present:
                raise PebalError(
                    f"emphasis.calm names '{name}', but no pixel of it was found in {where}: add scenes that show it "
                    f"or objects by 'pebal prepare-coco --rule known' as data.known, or take the name out."
                )
