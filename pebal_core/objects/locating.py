"""Locates objects on the ground."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .ground import GroundPlane
from .rules import RoadObject

FOOT_POINTS = 32
"""Most points along the foot of an object that are projected."""


@dataclass(frozen=True)
class Locator:
    """Locates objects on the ground in front of one camera.

    Args:
        ground: the ground as the camera sees it.
        scale: (x, y) factors from pixels of the image to pixels of the calibration.

    Examples:
        >>> from pebal_core.objects import CameraModel, Mounting, ObjectRules, find_objects
        >>> energy, road = np.full((60, 80), -10, np.float32), np.zeros((60, 80), np.uint8)
        >>> energy[30:45, 20:40] = -2
        >>> objects = find_objects(energy, road, ObjectRules(threshold=-4, grow=-5)).objects
        >>> camera = CameraModel(80, 60, np.array([[80, 0, 40], [0, 80, 20], [0, 0, 1.0]]), np.zeros(5))
        >>> locator = Locator(GroundPlane.from_mounting(camera, Mounting(height=1.5)))
        >>> [round(found.distance, 2) for found in locator.locate(objects)]
        [5.04]
    """

    ground: GroundPlane
    scale: tuple[float, float] = (1.0, 1.0)

    def locate(self, objects: Sequence[RoadObject]) -> list[RoadObject]:
        """Add position, distance and their uncertainty to objects; those above the horizon are returned unchanged."""
        if not objects:
            return []
        contacts = self._pixels(np.array([found.contact for found in objects]))
        positions, covariances = self.ground.project(contacts), self.ground.covariances(contacts)
        offsets = positions - self.ground.foot
        distances = np.hypot(*offsets.T)
        rays = offsets / np.maximum(distances, 1e-9)[:, None]
        finite = np.where(np.isfinite(covariances), covariances, 0.0)
        deviations = np.sqrt(np.einsum("ni,nij,nj->n", rays, finite, rays))
        deviations[np.isinf(covariances).any(axis=(1, 2))] = np.inf
        figures = zip(positions.tolist(), covariances, distances.tolist(), deviations.tolist(), strict=True)
        return [
            found
            if math.isnan(distance)
            else replace(found, position=(x, y), covariance=covariance, distance=distance, distance_std=deviation)
            for found, ((x, y), covariance, distance, deviation) in zip(objects, figures, strict=True)
        ]

    def foot(self, found: RoadObject) -> np.ndarray:
        """Compute points on the ground along the foot of an object.

        Returns:
            N×2 in metres, with at most `FOOT_POINTS` points; points above the horizon are left out.
        """
        picked = np.unique(np.linspace(0, len(found.foot) - 1, min(FOOT_POINTS, len(found.foot))).round().astype(int))
        points = self.ground.project(self._pixels(found.foot[picked]))
        return points[~np.isnan(points).any(axis=1)]

    def _pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Convert pixels of the image to pixels of the calibration; in both, pixel centres are whole numbers."""
        return (pixels + 0.5) * self.scale - 0.5
