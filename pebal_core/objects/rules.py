"""The criteria for an object, and the description of a found object."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import PebalError
from ..model_info import ModelInfo

GROW_SHARE = 0.25
"""`grow` lies below the threshold by this share of the threshold's distance to the median inlier energy."""
SWEEP = 4.0
"""Nats below `grow` at which `filter_energy` begins."""


@dataclass(frozen=True)
class ObjectRules:
    """The criteria by which a group of pixels is reported as an object.

    Lengths and areas refer to an image that is `reference_width` pixels wide, and scale with the image.

    Raises:
        PebalError: a setting is out of range, or `grow` lies above `threshold`.

    Examples:
        >>> rules = ObjectRules(threshold=-4, grow=-5, min_area=50)
        >>> rules.area_in(2 * rules.reference_width)  # pixels in an image of twice the width
        200.0
    """

    threshold: float
    """Energy in nats that at least one pixel of an object must reach."""
    grow: float
    """An object extends over the neighbouring pixels with at least this energy in nats (hysteresis)."""
    min_area: float = 50.0
    """Smallest area of an object in pixels."""
    reference_width: int = 1024
    """Image width in pixels to which `min_area`, `reach` and `smoothing` refer."""
    carriers: tuple[int, ...] | None = (0, 1)
    """Ids of the classes on which an object can stand; None switches the place rule off."""
    foot_share: float = 0.3
    """Share of the object's width that must stand on carriers."""
    reach: float = 4.0
    """Largest gap in pixels between the lower edge of an object and the ground on which it stands."""
    smoothing: float = 4.0
    """Standard deviation in pixels of a Gaussian. The smoothed energy must reach `threshold`, so that thin edges of
    known objects do not alarm. Outlines and positions are computed from the unsmoothed energy."""
    max_objects: int = 32
    """Most candidates that are examined per image, which bounds the time; the largest are examined first."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and math.isfinite(self.grow)):
            raise PebalError(
                f"The thresholds of objects must be finite; they are {self.grow:g} and {self.threshold:g}."
            )
        if self.grow > self.threshold:
            raise PebalError(
                f"The energy to which objects grow ({self.grow:g} nats) lies above the threshold ({self.threshold:g} "
                "nats); lower the former or raise the latter."
            )
        for name, low, high in (
            ("min_area", 1, 1e9), ("reference_width", 16, 1e6), ("foot_share", 0, 1), ("reach", 0, 1e4),
            ("smoothing", 0, 1e3), ("max_objects", 1, 10000),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:
                raise PebalError(f"{name} of the object rules must lie between {low:g} and {high:g}, not {value:g}.")

    @property
    def sweep_from(self) -> float:
        """The lowest threshold in nats at which `filter_energy` applies the rules."""
        return self.grow - SWEEP

    @classmethod
    def for_model(
        cls,
        info: ModelInfo,
        threshold: float | None = None,
        grow: float | None = None,
        carriers: Sequence[str] | None = None,
        **settings: Any,
    ) -> ObjectRules:
        """Make the rules for a model's energies and classes.

        Args:
            info: description of the model.
            threshold: in nats; None takes the model's threshold.
            grow: in nats; None lies `GROW_SHARE` of the way from the threshold to the model's median inlier energy,
                which is the lower end of its `energy_range`.
            carriers: names of the classes on which an object can stand. An empty sequence switches the place rule off;
                None takes the classes that carry objects according to the model's class list.
            settings: other fields of `ObjectRules`.

        Raises:
            PebalError: there is no threshold, a class name is unknown, or a setting is out of range.

        Examples:
            >>> info = ModelInfo("deeplabv3plus", threshold=-4.0, energy_range=[-12.0, 0.0])
            >>> rules = ObjectRules.for_model(info, min_area=80)
            >>> rules.threshold, rules.grow, rules.carriers, rules.min_area
            (-4.0, -6.0, (0, 1), 80)
        """
        threshold = info.threshold if threshold is None else threshold
        if threshold is None:
            raise PebalError(
                "The model stores no alarm threshold, but objects need one. Choose it with 'pebal calibrate'."
            )
        if grow is None:
            grow = threshold - GROW_SHARE * max(threshold - info.energy_range[0], 0.0)
        ids = info.classes.flagged("carries_objects") if carriers is None else class_ids(carriers, info.class_names)
        return cls(threshold, grow, carriers=ids or None, **settings)

    def area_in(self, width: int) -> float:
        """`min_area` in pixels of an image of this width."""
        return self.min_area * (width / self.reference_width) ** 2

    def reach_in(self, width: int) -> int:
        """`reach` in pixels of an image of this width, at least 1."""
        return max(1, round(self.reach * width / self.reference_width))


def class_ids(names: Sequence[str], known: Sequence[str]) -> tuple[int, ...]:
    """Convert names of classes to ids.

    Raises:
        PebalError: a name is not among the model's classes.

    Examples:
        >>> class_ids(["car"], ["road", "car"])
        (1,)
    """
    for name in names:
        if name not in known:
            raise PebalError(f"The model has no class '{name}'; its classes are: {', '.join(known)}.")
    return tuple(known.index(name) for name in names)


@dataclass(frozen=True)
class RoadObject:
    """One object in one image; coordinates are pixels of the image, with x to the right and y down."""

    box: tuple[int, int, int, int]
    """x, y, width and height."""
    area: int
    """Area in pixels."""
    mean_energy: float
    """Mean energy in nats."""
    peak_energy: float
    """Highest energy in nats."""
    label: int
    """Id of the class that the network predicts for most of its pixels."""
    contact: tuple[int, int]
    """x and y of the lowest point that touches the ground."""
    foot: np.ndarray = field(repr=False, compare=False)
    """N×2 int32, x and y along the lower edge that touches the ground, from left to right."""
    contour: np.ndarray = field(repr=False, compare=False)
    """N×2 int32, x and y along the outline of the object's largest part."""
    mask: np.ndarray = field(repr=False, compare=False)
    """h×w bool, the object's pixels inside `box`."""
    id: int = 0
    """Track number, from 1 on, which the object keeps over time; 0 if the object is not tracked."""
    confirmed: bool = False
    """Whether the object was seen in enough of the last images."""
    position: tuple[float, float] | None = None
    """x (forward) and y (left) in the ground frame in metres; None if unknown."""
    covariance: np.ndarray | None = field(default=None, repr=False, compare=False)
    """2×2 covariance of `position` in square metres."""
    distance: float | None = None
    """Metres on the ground from the point below the camera to the contact point; None if unknown."""
    distance_std: float | None = None
    """Standard deviation of `distance` in metres."""

    @property
    def caption(self) -> str:
        """Track number and distance, as they are drawn."""
        return f"{self.id}" if self.distance is None else f"{self.id}: {self.distance:.1f} m"

    def as_json(self) -> dict[str, Any]:
        """The object as JSON types, as in ``objects.jsonl``."""
        return {
            "id": self.id,
            "box": list(self.box),
            "area": self.area,
            "mean_energy": round(self.mean_energy, 4),
            "peak_energy": round(self.peak_energy, 4),
            "label": self.label,
            "contact": list(self.contact),
            "distance_m": None if self.distance is None else round(self.distance, 3),
            "distance_std_m": None if self.distance_std is None else round(self.distance_std, 3),
            "confirmed": self.confirmed,
        }
