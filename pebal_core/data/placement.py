"""Where outliers stand in a scene: which classes carry them, where the horizon is, and where they touch the ground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..class_list import ClassList, cityscapes_classes
from ..labels import CARS, RIDERS, SIGNS, VEHICLES, VOID

TERRAIN = 9

MIN_HEIGHT = 6
"""Smallest height in pixels; smaller outliers are noise at the resolution of the logits."""


@dataclass(frozen=True)
class Roles:
    """The roles that the classes of a scene play in a mix.

    Examples:
        >>> Roles.of(cityscapes_classes()).ground  # road, sidewalk and terrain
        (0, 1, 9)
    """

    road: int
    """The class whose patches are pasted and whose far end indicates the horizon."""
    ground: tuple[int, ...]
    """Classes on which objects stand."""
    movable: tuple[int, ...]
    """Classes and groups of classes (see `partial_labels`) that keep their label in another scene."""

    @classmethod
    def of(cls, classes: ClassList) -> Roles:
        """The roles that follow from a class list."""
        carriers = classes.flagged("carries_objects")
        if classes == cityscapes_classes():
            return cls(0, (*carriers, TERRAIN), (*classes.flagged("movable"), VEHICLES, CARS, RIDERS, SIGNS))
        return cls(carriers[0] if carriers else VOID, carriers, classes.flagged("movable"))

    @property
    def is_ground(self) -> np.ndarray:
        """Lookup table, 256 bool, that is true for labels on which objects stand."""
        return np.isin(np.arange(256), self.ground)


CITYSCAPES_ROLES = Roles.of(cityscapes_classes())


def horizon_row(labels: np.ndarray, roles: Roles = CITYSCAPES_ROLES) -> int:
    """Row of the horizon of a whole scene, estimated from the far end of the road.

    Without a road it is 0.42 of the height. `labels` are H×W uint8.

    Examples:
        >>> labels = np.full((100, 100), 10, np.uint8)  # sky
        >>> labels[60:] = 0  # road
        >>> horizon_row(labels)
        58
    """
    rows = np.flatnonzero((labels == roles.road).mean(1) > 0.02)
    return int(rows[0]) - labels.shape[0] // 50 if rows.size else int(0.42 * labels.shape[0])


def log_uniform(bounds: Sequence[float], rng: np.random.Generator) -> float:
    """Draw log-uniformly between two positive bounds.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> [round(log_uniform((1.0, 100.0), rng), 1) for _ in range(3)]
        [18.8, 3.5, 1.2]
    """
    return float(np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1]))))


def draw_foot(
    labels: np.ndarray, horizon: int, rng: np.random.Generator, roles: Roles = CITYSCAPES_ROLES
) -> tuple[int, int] | None:
    """Draw a ground pixel (row, column) whose distance is about log-uniform; None if there is no ground.

    Examples:
        >>> labels = np.full((100, 100), 10, np.uint8)  # sky
        >>> labels[60:] = 0  # road
        >>> draw_foot(labels, horizon=50, rng=np.random.default_rng(0))
        (77, 51)
    """
    ground = roles.is_ground[labels]
    rows = np.flatnonzero(ground.any(1))
    rows = rows[rows > horizon + MIN_HEIGHT]
    if not rows.size:
        return None
    # Distance is proportional to 1 / (y - horizon); these weights make its logarithm uniform.
    weights = 1.0 / (rows - horizon)
    row = int(rng.choice(rows, p=weights / weights.sum()))
    return row, int(rng.choice(np.flatnonzero(ground[row])))


def foot_at(
    labels: np.ndarray, row: int, rng: np.random.Generator, roles: Roles = CITYSCAPES_ROLES
) -> tuple[int, int] | None:
    """Draw a ground pixel (row, column) from the nearest row that shows ground; None if there is no ground.

    Examples:
        >>> labels = np.full((100, 100), 10, np.uint8)  # sky
        >>> labels[60:] = 0  # road
        >>> foot_at(labels, row=55, rng=np.random.default_rng(0))
        (60, 85)
    """
    ground = roles.is_ground[labels]
    rows = np.flatnonzero(ground.any(1))
    if not rows.size:
        return None
    row = int(rows[np.abs(rows - row).argmin()])
    return row, int(rng.choice(np.flatnonzero(ground[row])))
