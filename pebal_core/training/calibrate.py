"""Where to set the alarm: energies on scenes without anomalies."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..detector import AnomalyDetector
from ..errors import PebalError
from ..labels import VOID

_EVERY = 7
"""Every 7th pixel is kept: neighbours say nearly the same, and 7 divides no common image width."""


def calibrate(
    detector: AnomalyDetector,
    scenes: Iterable[tuple[np.ndarray, np.ndarray | None]],
    false_alarms: float,
    note: str,
) -> None:
    """Set ``threshold``, ``threshold_note`` and ``energy_range`` of ``detector.info``.

    The threshold is the energy that the given share of the inlier pixels exceeds, all images pooled. The display
    range starts at the median and puts the threshold at 5/8 of the way.

    Args:
        scenes: images H×W×3 uint8 RGB without anomalies, each with labels H×W (255 = leave out) or None.
        false_alarms: share in (0, 1) of inlier pixels that may raise an alarm.
        note: where the scenes come from.

    Raises:
        PebalError: no scene, or a share outside (0, 1).
    """
    if not 0 < false_alarms < 1:
        raise PebalError(f"The share of false alarms must lie between 0 and 1; it is {false_alarms}.")
    kept = []
    for image, labels in scenes:
        energy = detector(image).energy.ravel()[::_EVERY]
        kept.append(energy if labels is None else energy[labels.ravel()[::_EVERY] != VOID])
    if not kept:
        raise PebalError("There is no scene to choose a threshold on.")
    median, threshold = np.quantile(np.concatenate(kept), [0.5, 1 - false_alarms])
    info = detector.info
    info.threshold = round(float(threshold), 3)
    info.threshold_note = f"exceeded by {100 * false_alarms:g} % of the inlier pixels of {note}"
    info.energy_range = [round(float(median), 3), round(float(median + 1.6 * (threshold - median)), 3)]
