"""Finds the objects in the frames of one source offline, in the same way as the node does for a camera."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..detector import Result
from ..errors import PebalError
from ..footage import Frame, FrameSource
from ..model_info import ModelInfo
from ..objects import (
    CameraModel,
    GroundPlane,
    IgnoreMask,
    Locator,
    Mounting,
    ObjectRules,
    ObjectTracker,
    RoadObject,
    TrackRules,
    find_objects,
)
from .registry import Products
from .settings import PictureSettings
from .sighting import ClassMap, Sighting

BY_TOPIC = "topic"
"""Value that selects the recording's camera_info in place of a calibration file."""


@dataclass(frozen=True)
class ObjectOptions:
    """Options for finding and locating objects."""

    threshold: float | None = None
    """Alarm threshold in nats; None takes the model's."""
    ignore_mask: str = ""
    """Image file whose pixels that are not black never alarm; empty for none."""
    calibration: str = ""
    """Calibration file in the YAML format of ROS, or `BY_TOPIC`; if it is empty, objects have no distance."""
    mounting: Mounting = field(default_factory=lambda: Mounting(1.5))
    """Mounting of the camera."""


class ObjectReader:
    """Finds, tracks and locates the objects of the frames of one source.

    Args:
        options: the options.
        info: description of the model.
        source: the source, whose calibration is used if the options say so.

    Raises:
        PebalError: an option cannot be used.

    Examples:
        >>> import tempfile
        >>> import cv2
        >>> energy, road = np.full((60, 80), -10, np.float32), np.zeros((60, 80), np.uint8)
        >>> energy[30:45, 20:40] = -2
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = cv2.imwrite(f"{folder}/1.png", np.zeros((60, 80, 3), np.uint8))
        ...     source = FrameSource(folder)
        ...     read = ObjectReader(ObjectOptions(threshold=-4.0), ModelInfo("deeplabv3plus"), source)
        ...     [read(frame, Result(road, energy)).sighting.objects[0].box for frame in source]
        [(20, 30, 20, 15)]
    """

    def __init__(self, options: ObjectOptions, info: ModelInfo, source: FrameSource) -> None:
        self.settings = PictureSettings.of_model(info, options.threshold)
        self._info, self._class_map = info, ClassMap.read("", info.class_names)
        self._rules: ObjectRules | None = None
        if self.settings.threshold is not None:
            self._rules = ObjectRules.for_model(info, options.threshold)
        self._mask = IgnoreMask.read(options.ignore_mask) if options.ignore_mask else IgnoreMask.decode(info.ego_mask)
        self._ground: GroundPlane | None = None
        if options.calibration:
            from_topic = options.calibration == BY_TOPIC
            camera = source.calibration() if from_topic else CameraModel.read(Path(options.calibration))
            self._ground = GroundPlane.from_mounting(camera, options.mounting)
        self._tracker = ObjectTracker(TrackRules())

    def __call__(self, frame: Frame, result: Result) -> Products:
        """Process the next frame; returns its outputs, including the objects.

        Raises:
            PebalError: the ignore mask or the calibration belongs to another camera.
        """
        sighting = self._sight(result, frame.seconds)
        return Products(frame.image, result, self.settings, self._info.palette, lambda: sighting)

    def _sight(self, result: Result, stamp: float) -> Sighting:
        height, width = result.energy.shape
        ignore, locator = self.ignored(height, width), self._locator(height, width)
        objects: list[RoadObject] = []
        if self._rules is not None:
            found = find_objects(result.energy, result.labels, self._rules, ignore).objects
            objects = self._tracker.update(found, stamp)
        if locator is not None:
            objects = locator.locate(objects)
        return Sighting.of(objects, self.settings, self._info.class_names, self._class_map, locator)

    def ignored(self, height: int, width: int) -> np.ndarray | None:
        """H×W bool, true where nothing may alarm; None if there is no mask."""
        return self._mask.at(height, width) if self._mask is not None else None

    def _locator(self, height: int, width: int) -> Locator | None:
        """The locator for frames of this size; None if there is no calibration."""
        if self._ground is None:
            return None
        camera = self._ground.camera
        if abs(width * camera.height / (height * camera.width) - 1) > 0.01:
            raise PebalError(
                f"The calibration is for {camera.width}×{camera.height} pixels, but the frames are {width}×{height}. "
                "Pass the calibration of this camera with --camera-info."
            )
        return Locator(self._ground, (camera.width / width, camera.height / height))
