"""The objects of one frame in the form in which they are published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from ..errors import PebalError
from ..files import user_path
from ..objects import Locator, RoadObject
from .settings import PictureSettings

GROUND_FRAME = "base_footprint"
"""Default frame of obstacles and markers, in which the ground is at z = 0."""


class ClassMap:
    """Maps the network's classes to the class names that an integrator's software expects.

    A YAML file maps the class that the network predicts for an object to the published name. ``default`` is the name
    for all other classes.

        default: HAZARD
        person: PEDESTRIAN

    Examples:
        >>> class_map = ClassMap({"person": "PEDESTRIAN"}, default="HAZARD")
        >>> class_map("person"), class_map("car")
        ('PEDESTRIAN', 'HAZARD')
    """

    def __init__(self, names: dict[str, str], default: str) -> None:
        self._names, self._default = names, default

    @classmethod
    def read(cls, path: str, class_names: Sequence[str]) -> ClassMap:
        """Read a mapping file; with an empty path, every object is an ``anomaly``.

        Raises:
            PebalError: the file cannot be read, is no mapping of names, or names a class that the model does not have.

        Examples:
            >>> ClassMap.read("", ["road", "person"])("person")
            'anomaly'
        """
        if not path:
            return cls({}, "anomaly")
        try:
            content = yaml.safe_load(user_path(path).read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = next(iter(str(error).splitlines()), "no reason given")
            raise PebalError(f"The class mapping {path} cannot be read: {reason}") from error
        if not isinstance(content, dict) or not all(isinstance(x, str) for item in content.items() for x in item):
            raise PebalError(f"The class mapping {path} must map names to names, one on each line.")
        default = content.pop("default", "anomaly")
        for name in content:
            if name not in class_names:
                raise PebalError(
                    f"The class mapping {path} names '{name}', but the model's classes are: {', '.join(class_names)}."
                )
        return cls(content, default)

    def __call__(self, class_name: str) -> str:
        return self._names.get(class_name, self._default)


@dataclass(frozen=True)
class Sighting:
    """The objects of one frame, with all the information for publishing them."""

    objects: Sequence[RoadObject]
    scores: Sequence[float]
    """Score of each object, which is its mean energy scaled from the limits of `score` to 0…1."""
    names: Sequence[str]
    """Published class name of each object."""
    locator: Locator | None
    """Locator of the camera; None if the geometry is unknown."""
    ground_frame: str
    """Name of the ground frame."""

    @classmethod
    def of(
        cls,
        objects: Sequence[RoadObject],
        settings: PictureSettings,
        class_names: Sequence[str],
        class_map: ClassMap,
        locator: Locator | None,
        ground_frame: str = GROUND_FRAME,
    ) -> Sighting:
        """Compute the scores and published names of objects."""
        span = settings.score_max - settings.score_min
        return cls(
            objects,
            [min(max((one.mean_energy - settings.score_min) / span, 0.0), 1.0) for one in objects],
            [class_map(class_names[one.label]) for one in objects],
            locator,
            ground_frame,
        )

    @property
    def confirmed(self) -> list[tuple[RoadObject, float]]:
        """Confirmed objects with their scores."""
        return [(found, score) for found, score in zip(self.objects, self.scores) if found.confirmed]
