"""The options by which a command finds objects in a sequence of frames."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser, Namespace

from ..detector import Result
from ..errors import PebalError
from ..footage import FrameSource
from ..model_file import ModelInfo
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

BY_TOPIC = "topic"
"""In place of a calibration file: the camera_info beside the images of a recording."""


def add_object_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--threshold", type=float, help="nats from which a pixel alarms; default: the model's")
    parser.add_argument("--ignore-mask", type=Path, help="image file that is not black where nothing may alarm")
    parser.add_argument(
        "--camera-info",
        type=Path,
        help="calibration of the camera: a YAML file as ROS writes it, or the word topic for that of a recording",
    )
    parser.add_argument("--camera-height", type=float, default=1.5, help="metres above the ground")
    parser.add_argument("--camera-pitch", type=float, default=0.0, help="degrees; positive when the camera looks down")
    parser.add_argument("--camera-roll", type=float, default=0.0, help="degrees; positive when turned clockwise")


class ObjectReader:
    """Finds, tracks and locates the objects of one sequence.

    Raises:
        PebalError: an option cannot be used.
    """

    def __init__(self, args: Namespace, info: ModelInfo, source: FrameSource) -> None:
        self.rules: ObjectRules | None = None
        """None: there is no threshold, so no objects are found."""
        if args.threshold is None and info.threshold is None:
            print("The model stores no threshold, so no objects are looked for: give --threshold.", file=sys.stderr)
        else:
            self.rules = ObjectRules.for_model(info, args.threshold)
        self._mask = IgnoreMask.read(args.ignore_mask) if args.ignore_mask else None
        self._ground: GroundPlane | None = None
        if args.camera_info:
            mounting = Mounting(args.camera_height, args.camera_pitch, args.camera_roll)
            from_topic = str(args.camera_info) == BY_TOPIC
            camera = source.calibration() if from_topic else CameraModel.read(args.camera_info)
            self._ground = GroundPlane.from_mounting(camera, mounting)
        self._tracker = ObjectTracker(TrackRules())

    def __call__(self, result: Result, stamp: float) -> list[RoadObject]:
        """The objects of the next frame, taken at `stamp` seconds.

        Raises:
            PebalError: the ignore mask or the calibration is of another camera.
        """
        if self.rules is None:
            return []
        height, width = result.energy.shape
        ignore = self._mask.at(height, width) if self._mask is not None else None
        objects = self._tracker.update(find_objects(result.energy, result.labels, self.rules, ignore).objects, stamp)
        locator = self.locator(height, width)
        return objects if locator is None else locator.locate(objects)

    def locator(self, height: int, width: int) -> Locator | None:
        """What puts the objects of frames of this size on the ground; None: no calibration was given.

        Raises:
            PebalError: the calibration is of another camera.
        """
        if self._ground is None:
            return None
        camera = self._ground.camera
        if abs(width * camera.height / (height * camera.width) - 1) > 0.01:
            raise PebalError(
                f"The calibration is of {camera.width}×{camera.height} pixels but the frames are {width}×{height}: give"
                " the calibration of this camera as --camera-info."
            )
        return Locator(self._ground, (camera.width / width, camera.height / height))


def number_map(objects: list[RoadObject], height: int, width: int) -> np.ndarray:
    """H×W uint16: the number of the object at each pixel, 0 = none. Numbers go round at 65535."""
    numbers = np.zeros((height, width), np.uint16)
    for found in objects:
        x, y, w, h = found.box
        numbers[y : y + h, x : x + w][found.mask] = (found.id - 1) % 65535 + 1
    return numbers
