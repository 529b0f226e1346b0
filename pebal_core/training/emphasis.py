"""Which pixels weigh more in the objective: known things that must stay calm, and small outliers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from torch import Tensor

from ..class_list import ClassList, cityscapes_classes
from ..data.partial_labels import GROUPS
from ..errors import PebalError
from ..labels import LABELLED_OUTLIER, OUTLIER
from ..ranges import SHARE, check_ranges


@dataclass(frozen=True)
class Emphasis:
    """Weights of pixels; the defaults weigh all the same."""

    calm: list[str] = field(default_factory=list)
    """Names of known classes, or of groups of the class list, that must not raise alarms, such as person and rider;
    those whose class list says `stays_calm` are always among them."""
    calm_weight: float = 10.0
    """Weight of a pixel of these classes; every other known pixel has 1."""
    size_exponent: float = 0.0
    """A pixel of an outlier of n pixels weighs (1000 / n)^size_exponent: 0 counts pixels, 1 counts objects."""

    labelled_anomalies: float = 1.0
    """Weight of a pixel of a labelled anomaly (`SceneSource.anomalies`); one of a pasted outlier has 1."""

    def __post_init__(self) -> None:
        check_ranges(self, calm_weight=(1e-6, 1e6), size_exponent=SHARE, labelled_anomalies=(1e-6, 1e6))


class PixelWeights:
    """Weights of pixels for a network of some classes.

    Raises:
        PebalError: `Emphasis.calm` names a class or group that the network does not have.
    """

    def __init__(self, emphasis: Emphasis, classes: ClassList) -> None:
        self.emphasis, self.names = emphasis, classes.names
        calm = set(classes.flagged("stays_calm"))
        for name in emphasis.calm:
            if name not in classes.names and name not in classes.groups:
                raise PebalError(
                    f"emphasis.calm: there is no class '{name}'; choose of {', '.join(classes.names)}, or a group of "
                    f"the class list."
                )
            calm |= {classes.names.index(name)} if name in classes.names else set(classes.groups[name])
        self.calm = tuple(sorted(calm))
        groups = GROUPS if classes == cityscapes_classes() else {}
        self._groups = {group: known for group, known in groups.items() if calm.issuperset(known)}

    @property
    def calm_labels(self) -> tuple[int, ...]:
        """The calm classes, and the group labels that stand for calm classes only."""
        return (*self.calm, *self._groups)

    def of(self, target: Tensor) -> Tensor | None:
        """B×H×W weights of a target B×H×W with group labels still in it; None where all weigh the same."""
        emphasis, labelled = self.emphasis, target == LABELLED_OUTLIER
        extra = emphasis.labelled_anomalies != 1 and bool(labelled.any())
        if not self.calm and not emphasis.size_exponent and not extra:
            return None
        weights = torch.ones(target.shape, device=target.device)
        if self.calm:
            weights[torch.isin(target, torch.tensor(self.calm_labels, device=target.device))] = emphasis.calm_weight
        if emphasis.size_exponent:
            outliers = ((target == OUTLIER) | labelled).cpu().numpy()
            for weight, outlier in zip(weights, outliers, strict=True):
                if outlier.any():
                    weight.copy_(torch.from_numpy(self._by_size(outlier)).to(weight).where(weight == 1, weight))
        return torch.where(labelled, weights * emphasis.labelled_anomalies, weights) if extra else weights

    def _by_size(self, outlier: np.ndarray) -> np.ndarray:
        _, regions, stats, _ = cv2.connectedComponentsWithStats(outlier.astype(np.uint8), connectivity=8)
        by_region = (1000.0 / stats[:, cv2.CC_STAT_AREA]) ** self.emphasis.size_exponent
        by_region[0] = 1.0
        return np.asarray(by_region[regions], np.float32)

    def check(self, labels: Sequence[np.ndarray], where: str) -> None:
        """Stop where a calm class is in none of these label maps.

        Raises:
            PebalError: nothing could teach the network to be calm there.
        """
        present: set[int] = set().union(*(np.unique(label).tolist() for label in labels))
        for index in self.calm:
            labels_of = {index, *(group for group, known in self._groups.items() if index in known)}
            if not labels_of & present:
                raise PebalError(
                    f"'{self.names[index]}' is to stay calm, but no pixel of it was found in {where}: add scenes that "
                    f"show it or objects by 'pebal prepare-coco --rule known' as data.known, or take it out of "
                    f"emphasis.calm."
                )
