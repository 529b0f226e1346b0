"""Objects with their place on the ground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .ground import GroundPlane
from .rules import RoadObject

FOOT_POINTS = 32
"""Points along the foot of an object that are projected at most."""


@dataclass(frozen=True)
class Locator:
    """Puts objects on the ground of one camera.

    Args:
        ground: the ground as the camera sees it.
        scale: (x, y) by which an image pixel is multiplied to become a pixel of the calibration.
    """

    ground: GroundPlane
    scale: tuple[float, float] = (1.0, 1.0)

    def locate(self, objects: Sequence[RoadObject]) -> list[RoadObject]:
        """The objects with position, distance and their uncertainty; what stands above the horizon has none."""
        if not objects:
            return []
        contacts = self._pixels(np.array([found.contact for found in objects]))
        located = []
        covariances = self.ground.covariances(contacts)
        for found, position, covariance in zip(objects, self.ground.project(contacts), covariances):
            if np.isnan(position).any():
                located.append(found)
                continue
            offset = position - self.ground.foot
            distance = float(np.linalg.norm(offset))
            ray = offset / max(distance, 1e-9)
            variance = float(ray @ covariance @ ray) if np.isfinite(covariance).all() else float("inf")
            located.append(
                replace(
                    found,
                    position=(float(position[0]), float(position[1])),
                    covariance=covariance,
                    distance=distance,
                    distance_std=variance**0.5,
                )
            )
        return located

    def foot(self, found: RoadObject) -> np.ndarray:
        """Points on the ground along the foot of an object.

        Returns:
            N×2 metres, at most `FOOT_POINTS`; points above the horizon are left out.
        """
        picked = np.unique(np.linspace(0, len(found.foot) - 1, min(FOOT_POINTS, len(found.foot))).round().astype(int))
        points = self.ground.project(self._pixels(found.foot[picked]))
        return points[~np.isnan(points).any(axis=1)]

    def _pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Pixel centres of the image → coordinates of the calibration, in which pixel centres are whole numbers."""
        return (pixels + 0.5) * self.scale - 0.5
