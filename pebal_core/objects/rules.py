"""What counts as an object, and what is known of one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import PebalError
from ..model_file import ModelInfo

GROW_SHARE = 0.25
"""An object grows from the threshold down by this share of the threshold's distance to the median inlier energy."""


@dataclass(frozen=True)
class ObjectRules:
    """What has to hold for a group of pixels to be reported as an object.

    Lengths and areas are stated at an image width of `reference_width` pixels and scale with the image.

    Raises:
        PebalError: a setting is out of range, or `grow` lies above `threshold`.
    """

    threshold: float
    """Nats: an object holds at least one pixel of this energy or more."""
    grow: float
    """Nats: an object extends over the neighbouring pixels of at least this energy (hysteresis)."""
    min_area: float = 50.0
    """Smallest area of an object in pixels."""
    reference_width: int = 1024
    """Image width in pixels at which `min_area`, `reach` and `smoothing` are stated."""
    carriers: tuple[int, ...] | None = (0, 1)
    """Class ids that can carry an object; None switches the place rule off."""
    foot_share: float = 0.3
    """Share of the object's width that must stand on carriers."""
    reach: float = 4.0
    """Pixels between the lower edge of an object and the ground that it stands on, at most."""
    smoothing: float = 4.0
    """Standard deviation in pixels of a Gaussian; the energy after it must reach `threshold`, so that thin edges of
    known things do not alarm. Outlines and positions follow the energy as it is."""
    max_objects: int = 32
    """Candidates that are looked at in one image at most, so that time stays bounded; the largest are."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and math.isfinite(self.grow)):
            raise PebalError(
                f"The thresholds of objects must be finite; they are {self.grow:g} and {self.threshold:g}."
            )
        if self.grow > self.threshold:
            raise PebalError(
                f"The energy to which objects grow ({self.grow:g} nats) lies above the threshold ({self.threshold:g} "
                "nats): lower the former or raise the latter."
            )
        for name, low, high in (
            ("min_area", 1, 1e9), ("reference_width", 16, 1e6), ("foot_share", 0, 1), ("reach", 0, 1e4),
            ("smoothing", 0, 1e3), ("max_objects", 1, 10000),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:
                raise PebalError(f"{name} of the object rules must lie between {low:g} and {high:g}, not {value:g}.")

    @classmethod
    def for_model(
        cls,
        info: ModelInfo,
        threshold: float | None = None,
        grow: float | None = None,
        carriers: Sequence[str] | None = None,
        **settings: Any,
    ) -> ObjectRules:
        """The rules for a model's energies and classes.

        Args:
            info: description of the model.
            threshold: nats; None: the one stored with the model.
            grow: nats; None: `GROW_SHARE` of the way from the threshold to the model's median inlier energy, which is
                the lower end of its `energy_range`.
            carriers: names of classes that can carry an object; none at all switch the place rule off. None: those that
                carry objects by the model's class list.
            settings: other fields of `ObjectRules`.

        Raises:
            PebalError: the model stores no threshold and none is given, or a class name is unknown.
        """
        threshold = info.threshold if threshold is None else threshold
        if threshold is None:
            raise PebalError(
                "The model stores no alarm threshold, and objects need one: choose it with 'pebal calibrate'."
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
    """Ids of classes by name.

    Raises:
        PebalError: a name is not among the model's classes.
    """
    for name in names:
        if name not in known:
            raise PebalError(f"The model has no class '{name}'; its classes are: {', '.join(known)}.")
    return tuple(known.index(name) for name in names)


@dataclass(frozen=True)
class RoadObject:
    """One object in one image; pixels are those of the image, x to the right, y down."""

    box: tuple[int, int, int, int]
    """x, y, width, height."""
    area: int
    """Pixels."""
    mean_energy: float
    """Nats."""
    peak_energy: float
    """Nats."""
    label: int
    """Id of the class that the network takes most of its pixels for."""
    contact: tuple[int, int]
    """x, y of the lowest point that touches the ground."""
    foot: np.ndarray = field(repr=False, compare=False)
    """N×2 int32: x, y along the lower edge that touches the ground, from left to right."""
    contour: np.ndarray = field(repr=False, compare=False)
    """N×2 int32: x, y of the outline of the object's largest part."""
    mask: np.ndarray = field(repr=False, compare=False)
    """h×w bool: the object's pixels inside `box`."""
    id: int = 0
    """Number that stays with the object over time, from 1 on; 0: nobody tracks it."""
    confirmed: bool = False
    """Whether the object was seen in enough of the last images."""
    position: tuple[float, float] | None = None
    """Metres on the ground, x forward and y to the left of the ground frame; None: not known."""
    covariance: np.ndarray | None = field(default=None, repr=False, compare=False)
    """2×2 of `position`, in square metres."""
    distance: float | None = None
    """Metres on the ground from below the camera to the contact point; None: not known."""
    distance_std: float | None = None
    """Standard deviation of `distance` in metres."""

    @property
    def caption(self) -> str:
        """Number and distance, as they are drawn."""
        return f"{self.id}" if self.distance is None else f"{self.id}: {self.distance:.1f} m"

    def as_json(self) -> dict[str, Any]:
        """The object in JSON's types, as in ``objects.jsonl``."""
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
