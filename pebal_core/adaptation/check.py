"""Measures false objects, the alarmed share and the recall of pasted objects on the check part of the footage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from ..data.coco import OutlierSet
from ..data.outlier_mix import ObjectPool, RichMix
from ..data.placement import Roles, horizon_row
from ..detector import AnomalyDetector
from ..labels import OUTLIER
from ..metrics.pooled import PooledMetrics

FOUND = 0.25
"""Share of an object's pixels that must be alarmed for the object to count as found."""
MIN_OBJECT = 50
"""Smallest area of a pasted object, in pixels, that recall counts."""


@dataclass(frozen=True)
class Figures:
    """The figures of one model on frames without anomalies, and on the same frames with pasted objects."""

    threshold: float
    false_objects: float
    """False objects per frame."""
    alarmed: float
    """Share of the known pixels that are alarmed."""
    recall: float
    """Share of the pasted objects that are found at the threshold."""
    ap: float
    """Average precision of the pasted objects' pixels."""

    def as_dict(self) -> dict[str, Any]:
        """The figures by name, for summary.json."""
        return asdict(self)


@dataclass(frozen=True)
class Energies:
    """A model's outputs on the check frames, kept so that thresholds can be compared.

    Each list holds one H×W array per frame.
    """

    clean: list[np.ndarray]
    """Energies in nats of the frames as recorded."""
    mixed: list[np.ndarray]
    """Energies in nats of the frames with pasted objects."""
    targets: list[np.ndarray]
    """1 on pasted objects, 0 elsewhere, 255 on the ego mask."""

    def recall(self, threshold: float) -> float:
        """Share of the pasted objects of which at least a quarter is alarmed; NaN if there is no object."""
        found = objects = 0
        for energy, target in zip(self.mixed, self.targets):
            count, regions, stats, _ = cv2.connectedComponentsWithStats((target == 1).astype(np.uint8), connectivity=8)
            alarmed = np.bincount(regions[energy >= np.float32(threshold)], minlength=count)
            for number in range(1, count):
                if stats[number, cv2.CC_STAT_AREA] >= MIN_OBJECT:
                    objects += 1
                    found += bool(alarmed[number] >= FOUND * stats[number, cv2.CC_STAT_AREA])
        return found / objects if objects else float("nan")

    def threshold_of(self, recall: float) -> float:
        """The highest threshold, to a hundredth of a nat, at which at least this recall is reached."""
        low = float(min(energy.min() for energy in self.mixed))
        high = float(max(energy.max() for energy in self.mixed))
        while high - low > 0.01:
            middle = (low + high) / 2
            low, high = (middle, high) if self.recall(middle) >= recall else (low, middle)
        return low

    def false_objects(self, threshold: float, size: int) -> tuple[float, float]:
        """Alarmed regions of at least `size` pixels per clean frame, and the alarmed share of the known pixels."""
        objects, shares = 0, []
        for energy, target in zip(self.clean, self.targets):
            alarm = (energy >= np.float32(threshold)) & (target != 255)
            stats = cv2.connectedComponentsWithStats(alarm.view(np.uint8), connectivity=8)[2]
            objects += int(np.count_nonzero(stats[1:, cv2.CC_STAT_AREA] >= size))
            shares.append(int(np.count_nonzero(alarm)) / max(1, int(np.count_nonzero(target != 255))))
        return objects / len(self.clean), float(np.mean(shares))


def energies(
    detector: AnomalyDetector, images: Sequence[np.ndarray], base: Sequence[np.ndarray], ego: np.ndarray | None,
    outliers: OutlierSet,
) -> Energies:  # fmt: skip
    """Run a model on the check frames, both unchanged and with pasted objects.

    Args:
        images: H×W×3 uint8 RGB, one per frame.
        base: labels (H×W) that the model before the adaptation predicts, one map per frame.
        ego: H×W bool, the ego mask; None if there is none.
        outliers: the objects to paste.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pebal_core.data.coco import Instance, OutlierImage
        >>> detector, image = AnomalyDetector.load("starter", "torch", "cpu"), np.full((96, 128, 3), 90, np.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     picture, mask = Path(folder) / "picture.png", Path(folder) / "mask.png"
        ...     _ = cv2.imwrite(str(picture), image), cv2.imwrite(str(mask), np.ones((96, 128), np.uint8))
        ...     box = OutlierImage(picture, mask, (Instance(1, "box", (0, 0, 128, 96)),))
        ...     run = energies(detector, [image], [detector(image).labels], None, OutlierSet("boxes", (box,)))
        >>> run.clean[0].shape, run.mixed[0].shape, np.unique(run.targets[0]).tolist()
        ((96, 128), (96, 128), [0, 1])
    """
    mix, pool, roles = RichMix(shapes=0.0), ObjectPool(outliers), Roles.of(detector.info.classes)
    kept = Energies([], [], [])
    for number, (image, labels) in enumerate(zip(images, base)):
        rng = np.random.default_rng([0xC4EC, number])
        (mixed, pasted), _ = mix.outliers((image, labels), horizon_row(labels, roles), pool, rng, roles)
        target = (pasted == OUTLIER).astype(np.uint8)
        if ego is not None:
            target[ego] = 255
        kept.clean.append(detector(image).energy)
        kept.mixed.append(detector(mixed).energy)
        kept.targets.append(target)
    return kept


def figures(run: Energies, threshold: float, size: int) -> Figures:
    """The figures at a threshold.

    Args:
        run: the model's outputs on the check frames.
        threshold: in nats.
        size: smallest area of a false object in pixels.

    Examples:
        >>> energy = np.full((20, 20), -10, np.float32)
        >>> energy[5:15, 5:15] = -2
        >>> target = (energy > -4).astype(np.uint8)
        >>> run = Energies(clean=[np.full_like(energy, -10)], mixed=[energy], targets=[target])
        >>> figures(run, threshold=-4, size=10)
        Figures(threshold=-4, false_objects=0.0, alarmed=0.0, recall=1.0, ap=1.0)
    """
    pooled = PooledMetrics()
    for number, (energy, target) in enumerate(zip(run.mixed, run.targets)):
        pooled.update(energy, target, name=str(number))
    ap = pooled.compute().ap
    objects, alarmed = run.false_objects(threshold, size)
    return Figures(threshold, objects, alarmed, run.recall(threshold), float("nan") if ap is None else ap)
