"""Weights pixels in the objective, so that some known classes raise no alarms and small outliers count more."""

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
    """Weights of pixels; by default all pixels have the same weight.

    Examples:
        >>> Emphasis(calm=["person", "rider"], size_exponent=0.5).calm_weight
        10.0
    """

    calm: list[str] = field(default_factory=list)
    """Names of known classes, or of groups of the class list, that must not raise alarms, such as person and rider.
    Classes whose entry in the class list says `stays_calm` are always included."""
    calm_weight: float = 10.0
    """Weight of a pixel of these classes; every other known pixel has weight 1."""
    size_exponent: float = 0.0
    """A pixel of an outlier with n pixels has the weight (1000 / n)^size_exponent, so that 0 weights all pixels equally
    and 1 weights all objects equally."""

    labelled_anomalies: float = 1.0
    """Weight of a pixel of a labelled anomaly (`SceneSource.anomalies`); a pixel of a pasted outlier has weight 1."""

    def __post_init__(self) -> None:
        check_ranges(self, calm_weight=(1e-6, 1e6), size_exponent=SHARE, labelled_anomalies=(1e-6, 1e6))


class PixelWeights:
    """Computes the weights of pixels for a network with some classes.

    Args:
        emphasis: the settings.
        classes: the classes of the network.

    Raises:
        PebalError: `Emphasis.calm` names a class or group that the network does not have.

    Examples:
        >>> weights = PixelWeights(Emphasis(calm=["person"]), cityscapes_classes())
        >>> weights.of(torch.tensor([[[0, 11, 254]]])).tolist()
        [[[1.0, 10.0, 1.0]]]
    """

    def __init__(self, emphasis: Emphasis, classes: ClassList) -> None:
        self.emphasis, self.names = emphasis, classes.names
        calm = set(classes.flagged("stays_calm"))
        for name in emphasis.calm:
            if name not in classes.names and name not in classes.groups:
                raise PebalError(
                    f"emphasis.calm: there is no class '{name}'; choose one of {', '.join(classes.names)}, or a group "
                    "of the class list."
                )
            calm |= {classes.names.index(name)} if name in classes.names else set(classes.groups[name])
        self.calm = tuple(sorted(calm))
        groups = GROUPS if classes == cityscapes_classes() else {}
        self._groups = {group: known for group, known in groups.items() if calm.issuperset(known)}

    @property
    def calm_labels(self) -> tuple[int, ...]:
        """The calm classes, and the group labels that stand only for calm classes."""
        return (*self.calm, *self._groups)

    def of(self, target: Tensor) -> Tensor | None:
        """Weights (B×H×W) of a target (B×H×W integers) with its group labels; None if all weights are equal."""
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
        """Check that every calm class occurs in these label maps (H×W each).

        Args:
            labels: the label maps.
            where: name of the data, for messages.

        Raises:
            PebalError: a calm class occurs nowhere, so the weight would have no effect.
        """
        present: set[int] = set().union(*(np.unique(label).tolist() for label in labels))
        for index in self.calm:
            labels_of = {index, *(group for group, known in self._groups.items() if index in known)}
            if not labels_of & present:
                raise PebalError(
                    f"emphasis.calm contains '{self.names[index]}', but no pixel of it was found in {where}. Add "
                    "scenes that show it, add objects from 'pebal prepare-coco --rule known' as data.known, or "
                    "remove it from emphasis.calm."
                )
