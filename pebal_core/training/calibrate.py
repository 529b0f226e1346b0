"""Chooses the alarm threshold that satisfies a guarantee, on scenes without anomalies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ..detector import AnomalyDetector
from ..drift import features, make_profile
from ..errors import PebalError
from ..guarantee import Guarantee, Request, Risk, guarantee
from ..labels import VOID
from ..metrics.score_counts import ScoreCounts
from ..objects import IgnoreMask
from ..risk_control import Loss, critical_energy, object_loss, pixel_loss

_EVERY = 97
"""Stride of the pixels that are kept for the median, which only affects the display range."""

_TAIL = 7
"""Stride of the pixels that are sampled for the profile; the upper quarter of them is kept."""


class CalibrationScene(NamedTuple):
    """One scene without anomalies."""

    unit: str
    """Name of the drive or block of time to which it belongs."""
    image: np.ndarray
    """H×W×3 uint8 RGB."""
    labels: np.ndarray | None = None
    """H×W integers; pixels with the value 255 are ignored. None ignores no pixel."""


class UnitLosses:
    """Collects the energies of scenes by unit, and computes the losses of the units.

    Examples:
        >>> units = UnitLosses(Request(alpha=0.01))
        >>> units.add("town", np.array([[-12, -9], [-12, -3]], np.float32), ignore=None)
        >>> loss = units.losses()["pixels"][0]
        >>> units.frames, loss.at(-2), loss.at(-3)  # a quarter of the pixels, clipped to 0.05
        (1, 0.0, 0.05)
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.frames = 0
        self._counts: dict[str, ScoreCounts] = {}
        self._critical: dict[str, list[float]] = {}

    def add(self, unit: str, energy: np.ndarray, ignore: np.ndarray | None) -> None:
        """Add a frame; a frame whose pixels are all ignored does not count.

        Args:
            unit: name of the unit.
            energy: H×W float32 in nats.
            ignore: H×W bool, the pixels to leave out; None leaves out none.
        """
        known = energy.ravel() if ignore is None else energy[~ignore]
        if not known.size:
            return
        self.frames += 1
        self._counts.setdefault(unit, ScoreCounts()).add(np.empty(0, np.float32), np.ascontiguousarray(known))
        if self.request.object_alpha is not None:
            critical = critical_energy(energy, self.request.object_size, ignore)
            self._critical.setdefault(unit, []).append(critical)

    def losses(self) -> dict[Risk, list[Loss]]:
        """The losses for each risk of the request, one per unit."""
        losses: dict[Risk, list[Loss]] = {"pixels": [pixel_loss(c, self.request.clip) for c in self._counts.values()]}
        if self.request.object_alpha is not None:
            losses["objects"] = [object_loss(critical) for critical in self._critical.values()]
        return losses


def calibrate(
    detector: AnomalyDetector,
    scenes: Iterable[CalibrationScene],
    request: Request,
    unit: str,
    source: str,
    relax: bool = False,
) -> Guarantee:
    """Set ``threshold``, ``threshold_note``, ``guarantee``, ``profile`` and ``energy_range`` of ``detector.info``.

    The display range starts at the median energy and ends such that the threshold is at 5/8 of it.

    Args:
        detector: the detector, whose description is changed.
        scenes: scenes without anomalies.
        request: the guarantees to be given.
        unit: name of the units in the plural, such as "drives".
        source: name of the data from which the scenes come.
        relax: whether to use the smallest possible bound if there are too few units; see `guarantee`.

    Raises:
        PebalError: there is no scene, or there are too few units for the request.

    Examples:
        >>> detector = AnomalyDetector.load("starter", engine="torch", device="cpu")
        >>> images = (np.full((64, 96, 3), grey, np.uint8) for grey in (90, 110))
        >>> scenes = [CalibrationScene(f"drive {n}", image) for n, image in enumerate(images)]
        >>> promised = calibrate(detector, scenes, Request(alpha=0.01), "drives", "two grey drives", relax=True)
        >>> promised.units, promised.threshold == detector.info.threshold
        (2, True)
    """
    info = detector.info
    units, kept = UnitLosses(request), []
    tails: list[tuple[str, np.ndarray, int]] = []
    seen = []
    mask = IgnoreMask.decode(info.ego_mask)
    for scene in scenes:
        energy = detector(scene.image).energy
        ignore = None if mask is None else mask.at(*energy.shape)
        if scene.labels is not None:
            void = scene.labels == VOID
            ignore = void if ignore is None else ignore | void
        units.add(scene.unit, energy, ignore)
        known = energy.ravel() if ignore is None else energy[~ignore]
        if known.size:
            kept.append(known[::_EVERY])
            seen.append(features(scene.image))
            sample = np.sort(known[::_TAIL])
            tails.append((scene.unit, sample[-max(1, sample.size // 4) :], sample.size))
    if not units.frames:
        raise PebalError(f"There is no scene in {source} to choose a threshold on.")
    promised = guarantee(units.losses(), request, unit, units.frames, source, relax)
    median = float(np.median(np.concatenate(kept)))
    info.threshold, info.guarantee = promised.threshold, promised.as_dict()
    info.threshold_note = promised.statements[0].text
    info.energy_range = [round(median, 3), round(median + 1.6 * max(promised.threshold - median, 0.1), 3)]
    shares: dict[str, list[float]] = {}
    for name, tail, size in tails:
        shares.setdefault(name, []).append(np.count_nonzero(tail >= np.float32(promised.threshold)) / size)
    info.profile = make_profile(shares, seen, request.clip).as_dict()
    return promised
