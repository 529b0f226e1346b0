"""What others are told of the objects of one frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..errors import PebalError
from ..objects import Locator, RoadObject
from .settings import PictureSettings

GROUND_FRAME = "base_footprint"
"""Frame of obstacles and markers unless a setting names another; its z = 0 is the ground."""


class ClassMap:
    """Names by which an integrator's software knows objects.

    A YAML file maps what the network takes an object for to the name that is published; ``default`` names the rest.

        default: HAZARD
        person: PEDESTRIAN
    """

    def __init__(self, names: dict[str, str], default: str) -> None:
        self._names, self._default = names, default

    @classmethod
    def read(cls, path: str, class_names: Sequence[str]) -> ClassMap:
        """Read a mapping file; no path: every object is an ``anomaly``.

        Raises:
            PebalError: the file cannot be read, is no mapping of names, or names a class that the model does not have.
        """
        if not path:
            return cls({}, "anomaly")
        try:
            content = yaml.safe_load(Path(path).expanduser().read_text())
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
    """The objects of one frame, and what is needed to tell others of them."""

    objects: Sequence[RoadObject]
    scores: Sequence[float]
    """0 to 1 for each object: its mean energy between the limits of `score`."""
    names: Sequence[str]
    """Published class of each object."""
    locator: Locator | None
    """None: the geometry is not known."""
    ground_frame: str

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
        """The objects with their scores and published names."""
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
